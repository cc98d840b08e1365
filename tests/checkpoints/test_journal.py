"""Writing a checkpoint in steps, killed at every instant at which the disk is touched, and gone on with."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints import journal, lock, writer
from checkpoints.journal import Journal, Snapshot
from checkpoints.lock import Lock
from checkpoints.writer import CheckpointWriter
from qlinear.errors import CheckpointError
from tests.checkpoints.in_steps import DESCRIPTION, N_STEPS, Killed, contents, kill_at, run, values


@pytest.fixture(autouse=True)
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(journal, "WORTH", 0)


@pytest.fixture
def no_sync(monkeypatch):
    """The power stays on."""
    monkeypatch.setattr(journal, "_sync", lambda path: None)


@pytest.fixture(params=[2**30, 1000, 1], ids=["whole", "shards", "many"])
def shards(request, monkeypatch) -> int:
    """A step has two tensors, 600 bytes together."""
    monkeypatch.setattr(writer, "SHARD_BYTES", request.param)
    return {2**30: 1, 1000: 2, 1: 2 * N_STEPS}[request.param]


def test_killed_at_every_instant(tmp_path, shards, no_sync):
    run(tmp_path / "whole" / "q")
    expected = contents(tmp_path / "whole" / "q")
    assert len([name for name in expected if name.endswith(".safetensors")]) == shards
    kills = gone_on = 0
    while True:
        folder = tmp_path / str(kills)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, kills)
            try:
                run(folder / "q")
                break
            except Killed:
                kills += 1
        if (folder / "q").exists():
            assert contents(folder / "q") == expected
            run(folder / "q", overwrite=True)
        else:
            assert [path.name for path in folder.glob("*")] in ([], [".q.partial"])
            is_kept = (folder / ".q.partial" / "journal.json").exists()
            run(folder / "q", resume=is_kept)
            gone_on += is_kept
        assert contents(folder / "q") == expected and [path.name for path in folder.iterdir()] == ["q"]
    assert kills > gone_on > 20


def test_interrupted_while_the_disk_is_waited_for(tmp_path, shards):
    """Behind the rename of a journal, too: what is cleaned up then is nothing that the new one names."""
    run(tmp_path / "whole" / "q")
    interrupts = gone_on = 0
    while True:
        folder, left = tmp_path / str(interrupts), [None] * interrupts

        def sync(path, left=left) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "_sync", sync)
            try:
                run(folder / "q")
                break
            except KeyboardInterrupt:
                interrupts += 1
        is_kept = (folder / ".q.partial" / "journal.json").exists()
        run(folder / "q", resume=is_kept)
        gone_on += is_kept
        assert contents(folder / "q") == contents(tmp_path / "whole" / "q")
    assert interrupts > gone_on > 10


def test_killed_again_while_it_goes_on(tmp_path, shards, no_sync):
    """Twice at the same place of its way, then let be."""
    run(tmp_path / "whole" / "q")
    for n in range(6, 40, 3):
        folder = tmp_path / str(n)
        for resume in (False, True, True):
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, n)
                if not (folder / "q").exists():
                    resume = resume and (folder / ".q.partial" / "journal.json").exists()
                    try:
                        run(folder / "q", resume=resume)
                    except Killed:
                        pass
        if not (folder / "q").exists():
            run(folder / "q", resume=(folder / ".q.partial" / "journal.json").exists())
        assert contents(folder / "q") == contents(tmp_path / "whole" / "q")


def test_disk_and_files_while_it_runs(tmp_path, monkeypatch):
    """Parts are merged as soon as they make a shard, and gone then; one state is kept."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 1500)
    with CheckpointWriter(tmp_path / "q") as made:
        for step in range(5):
            made.add(f"{step}.total", values(step))
            made.add(f"{step}.values", values(step).bfloat16())
            made.end_step(lambda step=step: Snapshot({"done": step}, {f"k{step}": values(step)}, {"s": values(step)}))
            files = [path for path in made.partial.iterdir() if path.suffix == ".safetensors"]
            assert len(made.journal.files) == [1, 2, 1, 2, 3][step]
            assert len(files) == len(made.journal.files) + len(made.journal.kept) + 1
        assert len(made.journal.kept) == 5 and made.journal.load_state()["s"].equal(values(4))


@pytest.mark.parametrize(("sizes", "shards"), [([400, 400, 4000, 400], [4800, 400]), ([4000, 400, 400], [4000, 800])])
def test_small_parts_and_a_large_one(tmp_path, monkeypatch, sizes, shards):
    """None is left by itself before the last."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 1500)
    with CheckpointWriter(tmp_path / "q") as made:
        for step, size in enumerate(sizes):
            made.add(f"{step}", torch.zeros(size, dtype=torch.int8))
            made.end_step(lambda step=step: Snapshot({"done": step}, {}, {}))
        made.finish(DESCRIPTION, {}, {})
    files = sorted((tmp_path / "q").glob("*.safetensors"))
    assert [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files] == shards


def test_what_a_journal_names_is_on_the_disk_before_it_is(tmp_path, monkeypatch):
    events, rename = [], Path.rename

    def renamed(self, target):
        events.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(journal, "_sync", lambda path: events.append(path.name))
    monkeypatch.setattr(Path, "rename", renamed)
    with CheckpointWriter(tmp_path / "q") as made:
        made.add("x", values(0))
        made.end_step(lambda: Snapshot({"done": 1}, {"k": values(1)}, {"s": values(2)}))
    named = [f"{number:06}.safetensors" for number in (1, 2, 3)]
    assert events == [*named, "journal.json.partial", "rename journal.json.partial", ".q.partial"]


def test_what_a_run_depends_on(tmp_path):
    with CheckpointWriter(tmp_path / "q") as made:
        made.journal.identify({"bits": 4, "text": None})
        made.end_step(lambda: Snapshot({"done": 1}, {}, {}))
    for marks, words in (({"bits": 3}, "had bits 4, this one has 3"), ({"text": "x"}, "had text None, this one has x")):
        with pytest.raises(CheckpointError, match=words), CheckpointWriter(tmp_path / "q", resume=True) as made:
            made.journal.identify({"bits": 4})
            made.journal.identify(marks)
    with CheckpointWriter(tmp_path / "q", resume=True) as made:
        made.journal.identify({"bits": 4, "text": None})
        assert made.journal.record == {"done": 1}


def test_a_lock_has_one_holder(tmp_path):
    held = Lock(tmp_path / "new" / "lock", "taken")
    with pytest.raises(CheckpointError, match="^taken$"):
        Lock(tmp_path / "new" / "lock", "taken")
    held.release()
    assert list((tmp_path / "new").iterdir()) == []
    Lock(tmp_path / "new" / "lock", "taken").release()


def test_a_lock_is_not_that_of_a_file_that_is_gone(tmp_path, monkeypatch):
    """Its last holder lets go of it just as the next has opened it."""
    path, flock, files = tmp_path / "lock", lock.fcntl.flock, []

    def released_meanwhile(file, how):
        files.append(os.fstat(file.fileno()).st_ino)
        if len(files) == 1:
            path.unlink()
            path.touch()
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", released_meanwhile)
    held = Lock(path, "taken")
    assert len(files) == 2 and path.stat().st_ino == files[1]
    with pytest.raises(CheckpointError):
        Lock(path, "taken")
    held.release()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    Lock(tmp_path / "lock", "taken").release()


def test_a_journal_is_read_where_there_is_one(tmp_path):
    assert Journal.read(tmp_path) is None and Journal.read(tmp_path / "nowhere") is None
