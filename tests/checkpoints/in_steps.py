"""A checkpoint that is written in steps, and a disk that ends the run at a chosen instant."""

import os
from pathlib import Path

import torch

from checkpoints import journal
from checkpoints.journal import Snapshot
from checkpoints.writer import CheckpointWriter, Description

N_STEPS = 3


class Killed(BaseException):
    pass


class Library:
    """In the place of a config and of a tokenizer."""

    def __init__(self, file: str):
        self.file = file

    def save_pretrained(self, directory: Path) -> None:
        (directory / self.file).write_text("{}")


DESCRIPTION = Description(Library("config.json"), None, Library("tokenizer.json"))


def values(step: int) -> torch.Tensor:
    return torch.arange(100, dtype=torch.float32).add(1000 * step)


def run(directory: Path, resume: bool = False, overwrite: bool = False) -> None:
    """Each step adds to the sum of all before, which is the state, and keeps a tensor that finishing needs."""
    with CheckpointWriter(directory, overwrite=overwrite, resume=resume) as made:
        record, state, kept = made.journal.record, made.journal.load_state(), made.journal.load_kept()
        made.journal.identify({"steps": N_STEPS})
        done, total = record.get("done", 0), state.get("total", torch.zeros(100))
        for step in range(done, N_STEPS):
            total = total + values(step)
            kept[f"seen.{step}"] = values(step)
            made.add(f"{step}.total", total)
            made.add(f"{step}.values", values(step).bfloat16())
            snapshot = Snapshot({"done": step + 1}, dict(kept), {"total": total})
            made.end_step(lambda snapshot=snapshot: snapshot)
        seen = sorted(kept)
        assert seen == [f"seen.{step}" for step in range(N_STEPS)]
        assert all(torch.equal(kept[name], values(step)) for step, name in enumerate(seen))
        made.finish(DESCRIPTION, {}, {"seen": seen})


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def kill_at(patch, n: int) -> None:
    """Every change to the disk may be the last; a file that is being written then is torn. Nothing is cleaned up."""
    count = iter(range(10**6))

    def fatal(module, name: str) -> None:
        original = getattr(module, name)

        def fatally(*arguments, **named):
            if next(count) == n:
                if name in ("save_file", "write_text"):
                    original(*arguments, **named)
                    path = arguments[1] if name == "save_file" else arguments[0]
                    os.truncate(path, os.path.getsize(path) // 2)
                raise Killed
            return original(*arguments, **named)

        patch.setattr(module, name, fatally)

    fatal(journal, "save_file")
    fatal(Path, "write_text")
    for name in ("rename", "unlink", "mkdir", "rmdir"):
        fatal(Path, name)
        fatal(os, name)
    patch.setattr(CheckpointWriter, "__exit__", lambda self, *_: self._lock._file.close())
