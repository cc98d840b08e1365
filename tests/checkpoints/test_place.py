"""Where a checkpoint may go: nothing is replaced that this program did not make, and never what is quantized."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoints.writer import CheckpointWriter
from qlinear.errors import AwqError, CheckpointError
from tests.checkpoints.test_unfinished import contents
from tests.quantized import calibration_text, quantized


@pytest.fixture
def model(source, tmp_path) -> Path:
    """A float model of this test's own; a text to calibrate on lies beside it."""
    shutil.copy(calibration_text(source), tmp_path / "float.txt")
    return shutil.copytree(source, tmp_path / "float")


def refused(model: Path, output: Path | str, words: str) -> None:
    before = contents(model.parent)
    with pytest.raises(CheckpointError, match=words) as raised:
        quantized(model, Path(output), overwrite=True)
    assert "\n" not in str(raised.value) and contents(model.parent) == before


NOT_OURS = "is there already and no checkpoint made by this program; give another `output`"


def test_the_model_itself(model, monkeypatch):
    """By whatever name."""
    refused(model, model, NOT_OURS)
    link = model.with_name("link")
    link.symlink_to(model)
    refused(model, link, NOT_OURS)
    refused(link, model, NOT_OURS)
    refused(model, model / ".." / "float", NOT_OURS)
    refused(model, model / "model.safetensors", NOT_OURS)
    monkeypatch.chdir(model)
    refused(model, ".", NOT_OURS)
    refused(model, "..", NOT_OURS)


@pytest.mark.parametrize("recipe", ["{}", '{"files": null}', None])
def test_the_model_in_what_looks_like_a_checkpoint(model, tmp_path, recipe):
    """A float model that was saved over a checkpoint of ours, or within one: its recipe is still there.

    Older recipes do not name their files, so that only the model itself tells.
    """
    ours = "holds model.safetensors, a file of the model that is read; give another `output`"

    def disguise(directory: Path) -> None:
        files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
        content = json.dumps({"files": [*files, "awq_recipe.json"]}) if recipe is None else recipe
        (directory / "awq_recipe.json").write_text(content)

    disguise(model)
    refused(model, model, ours)
    (tmp_path / "link").symlink_to(model)
    refused(tmp_path / "link", model, ours)
    refused(model, tmp_path / "link", ours)
    outer = tmp_path / "outer"
    outer.mkdir()
    (model / "awq_recipe.json").unlink()
    inner = Path(shutil.move(model, outer / "float"))
    shutil.move(tmp_path / "float.txt", outer / "float.txt")
    disguise(outer)
    refused(inner, outer, ours)


def test_a_weight_file_that_lies_in_a_checkpoint(model, tmp_path):
    """The model's directory links to it."""
    made = quantized(model, tmp_path / "q")
    recipe = json.loads((made / "awq_recipe.json").read_text())
    recipe["files"].append("weights")
    (made / "awq_recipe.json").write_text(json.dumps(recipe))
    (model / "model.safetensors").rename(made / "weights")
    (model / "model.safetensors").symlink_to(made / "weights")
    refused(model, made, "q holds model.safetensors, a file of the model that is read; give another `output`")


def test_beside_and_below_the_model(model):
    """Nothing of it is touched there."""
    before = contents(model)
    made = quantized(model, model / "below")
    assert (made / "awq_recipe.json").is_file()
    shutil.rmtree(made)
    assert contents(model) == before


def test_links_to_a_checkpoint_stay_links(model, tmp_path):
    made = quantized(model, tmp_path / "q")
    (tmp_path / "link").symlink_to(made)
    quantized(model, tmp_path / "link", overwrite=True, w_bit=3)
    assert (tmp_path / "link").is_symlink()
    assert json.loads((made / "awq_recipe.json").read_text())["w_bit"] == 3


def test_what_the_user_put_into_it(model, tmp_path):
    made = quantized(model, tmp_path / "q")
    for name in ("notes.txt", "sub/notes.txt", ".hidden"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text("mine")
        refused(model, made, f"q holds {name}, which this program did not put there; move it away, or give another")
        (made / name).unlink()
    (made / "sub").rmdir()
    (made / "elsewhere").symlink_to(tmp_path)
    refused(model, made, "q holds elsewhere, which this program did not put there")
    (made / "elsewhere").unlink()
    quantized(model, made, overwrite=True)


def test_places_that_are_none(model, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for output, words in (
        (tmp_path / "a", "names no directory: Symlink loop"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / ("x" * 250), "File name too long"),  # with the name of its progress
        (f"{tmp_path}/a\0b", "names no directory: embedded null byte"),
        (tmp_path / "float.txt" / "q", "cannot write to .*float.txt: Not a directory"),
    ):
        refused(model, output, words)


def test_progress_is_kept_in_no_other_place(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    (tmp_path / ".q.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(
        CheckpointError, match=r"\.q\.partial is a link, and progress is kept in no other place; remove"
    ):
        CheckpointWriter(tmp_path / "q")
    assert (tmp_path / "mine" / "thesis").read_text() == "years"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "names model-00001-of-.*, which is not there"),
        ("cut", "model-00001-of-.* is not a whole safetensors file"),
        ("index", "places model.norm.weight in model-00001-of-.*, which does not hold it"),
    ],
)
def test_what_is_not_whole_is_not_published(source, tmp_path, monkeypatch, damage, words):
    """The finished directory is read once more; what is on the disk may be another thing than what was written."""
    monkeypatch.setattr("checkpoints.writer.SHARD_BYTES", 20_000)
    name_shards = CheckpointWriter._name_shards

    def damaged(self):
        name_shards(self)
        folder = self._finished
        shards = sorted(folder.glob("*.safetensors"))
        if damage == "missing":
            shards[0].rename(tmp_path / "away")
        elif damage == "cut":
            (tmp_path / "away").write_bytes(shards[0].read_bytes())
            shards[0].write_bytes(shards[0].read_bytes()[:-1])
        else:
            index = folder / "model.safetensors.index.json"
            content = json.loads(index.read_text())
            content["weight_map"]["model.norm.weight"] = shards[0].name
            index.write_text(json.dumps(content))

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "_name_shards", damaged)
        with pytest.raises(AwqError, match=words):
            quantized(source, tmp_path / "q")
    assert not (tmp_path / "q").exists() and (tmp_path / ".q.partial").exists()
    if damage == "index":  # which is made again
        quantized(source, tmp_path / "q", resume=True)
    else:
        with pytest.raises(CheckpointError, match="the progress in .* is damaged"):
            quantized(source, tmp_path / "q", resume=True)


def test_a_tensor_that_was_never_written_is_not_published(source, tmp_path, monkeypatch):
    add = CheckpointWriter.add
    skipped = lambda self, name, tensor: name.endswith("layers.1.input_layernorm.weight") or add(self, name, tensor)  # noqa: E731
    monkeypatch.setattr(CheckpointWriter, "add", skipped)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.1\.input_layernorm\.weight \(1 missing\)"):
        quantized(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()
