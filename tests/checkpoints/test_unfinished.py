"""Checkpoints whose writing was interrupted, or that are in the way of one."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from checkpoints.quantized import open_quantized
from checkpoints.writer import CheckpointWriter
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import CheckpointError, ModelError
from run_awq import quantize
from tests.quantized import calibration_text, quantized, recipe

BACKEND = ReferenceBackend("cpu/torch")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def fail_after(monkeypatch, place: tuple[str, int], error: BaseException) -> None:
    """Let a method of the writer raise at its call of that number."""
    method, calls = place
    original, count = getattr(CheckpointWriter, method), iter(range(10**6))

    def failing(self, *args, **kwargs):
        if next(count) == calls:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CheckpointWriter, method, failing)


IN_THE_FIRST_BLOCK = [("add", 0), ("add", 20), ("flush", 0), ("end_step", 0)]
LATER = [("add", 50), ("finish", 0), ("_name_shards", 0), ("_publish", 0)]
ERRORS = pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")], ids=["interrupted", "failed"])


@ERRORS
@pytest.mark.parametrize("place", IN_THE_FIRST_BLOCK)
def test_what_is_not_begun_leaves_nothing(source, tmp_path, monkeypatch, place, error):
    fail_after(monkeypatch, place, error)
    with pytest.raises(type(error)):
        quantized(source, tmp_path / "out" / "q")
    assert list(tmp_path.iterdir()) == []


@ERRORS
@pytest.mark.parametrize("place", LATER)
def test_what_is_not_finished_is_hidden_and_can_be(source, checkpoint, tmp_path, monkeypatch, place, error):
    chosen = dict(lm_head=True, lm_head_group_size=64)
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        fail_after(patch, place, error)
        quantized(source, tmp_path / "out" / "q", **chosen)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".q.partial"]
    finished = quantized(source, tmp_path / "out" / "q", **chosen, resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["q"]
    found, expected = contents(finished), contents(checkpoint)
    assert found.pop("awq_recipe.json") != expected.pop("awq_recipe.json")  # other seconds
    assert found == expected


@ERRORS
@pytest.mark.parametrize("place", IN_THE_FIRST_BLOCK + LATER)
def test_an_overwriting_run_that_fails_leaves_what_was_there(source, tmp_path, monkeypatch, place, error):
    directory = quantized(source, tmp_path / "out" / "q")
    before = contents(directory)
    fail_after(monkeypatch, place, error)
    with pytest.raises(type(error)):
        quantized(source, directory, w_bit=3, overwrite=True)
    assert contents(directory) == before
    begun = place in LATER
    assert sorted(path.name for path in directory.parent.iterdir()) == [".q.partial"] * begun + ["q"]


def test_an_interrupt_between_the_two_renames(source, tmp_path, monkeypatch):
    """Where names are not exchanged in one step."""
    directory = quantized(source, tmp_path / "out" / "q")
    before, rename = contents(directory), Path.rename

    def interrupted(self, target):
        if Path(target) == directory and self.name == "checkpoint":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr("checkpoints.writer.exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantized(source, directory, w_bit=3, overwrite=True)
    assert contents(directory) == before
    monkeypatch.undo()
    quantized(source, directory, w_bit=3, overwrite=True, resume=True)
    assert [path.name for path in directory.parent.iterdir()] == ["q"]
    assert open_quantized(directory, BACKEND).recipe["w_bit"] == 3


def test_what_is_there_stays_without_overwrite_and_goes_with_it(source, checkpoint):
    before = contents(checkpoint.parent)
    with pytest.raises(CheckpointError, match="exists already; give `overwrite` to replace it, or another `output`"):
        quantized(source, checkpoint, w_bit=3)
    assert contents(checkpoint.parent) == before
    quantized(source, checkpoint, w_bit=3, overwrite=True)
    assert open_quantized(checkpoint, BACKEND).recipe["w_bit"] == 3
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_leftovers_of_a_killed_run_are_in_nobodys_way(source, tmp_path):
    for name in (".q.partial", ".q.replaced"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "shard-0").write_text("torn")
    directory = quantized(source, tmp_path / "out" / "q")
    quantized(source, directory, overwrite=True)
    assert [path.name for path in directory.parent.iterdir()] == ["q"]
    assert not (directory / "shard-0").exists()


def test_overwrite_does_not_replace_what_is_no_checkpoint(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis is there already and no checkpoint made by this program; give "):
        quantized(source, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_overwriting_the_directory_one_is_in(source, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    quantized(source, Path("."), w_bit=3, overwrite=True)
    assert open_quantized(checkpoint, BACKEND).recipe["w_bit"] == 3


def test_an_output_that_cannot_be_made(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file"):
        quantized(source, tmp_path / "file" / "q")


def test_a_full_disk(source, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="cannot write .*No space left on device"):
        quantized(source, tmp_path / "out" / "q")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_cannot_be_removed(source, tmp_path, monkeypatch):
    """The new checkpoint is in its place then, and the run a success."""
    directory = quantized(source, tmp_path / "out" / "q")
    real = os.rmdir

    def busy(path, *more, **how):
        if str(path).endswith(".replaced"):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        return real(path, *more, **how)

    monkeypatch.setattr(os, "rmdir", busy)
    quantized(source, directory, w_bit=3, overwrite=True)
    monkeypatch.undo()
    assert open_quantized(directory, BACKEND).recipe["w_bit"] == 3
    assert not (directory.parent / ".q.partial").exists()


def test_a_file_system_without_permissions(source, tmp_path, monkeypatch):
    def refused(*given, **how):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    assert open_quantized(quantized(source, tmp_path / "q"), BACKEND).recipe["w_bit"] == 4


def test_a_model_that_changes_meanwhile(source, tmp_path):
    """As one does that is being trained. What was read before is of one model, what comes after of another."""
    model, again = tmp_path / "model", tmp_path / "again.safetensors"
    shutil.copytree(source, model)
    weights = {name: 2 * tensor for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(weights, again, metadata={"format": "pt"})

    def change(told):
        if again.exists():
            os.replace(again, model / "model.safetensors")

    shutil.copy(calibration_text(source), calibration_text(model))
    with pytest.raises(ModelError, match="the model's files are others than when it was opened"):
        quantize(str(model), str(tmp_path / "out" / "q"), recipe(model), progress=change)
    assert not (tmp_path / "out" / "q").exists()
