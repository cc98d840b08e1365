"""Rows looked at in processes of their own: one that crashes or hangs costs its row, not the table."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks.models.record import Outcome, Record, Way

# For a whole row, above the limits of its steps: native code does not hear a signal.
ROW_LIMIT_S = 300.0
_SETTINGS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def run_rows(names: Sequence[str], workers: int, done: Callable[[Record], None]) -> None:
    """Look at every row; `done` is called with each record as it comes."""
    waiting = iter(names)
    running = [worker for worker in (_begin(waiting) for _ in range(workers)) if worker is not None]
    while running:
        wait([worker.pipe for worker in running], timeout=1.0)
        for worker in list(running):
            record = worker.outcome()
            if record is not None:
                done(record)
                if not worker.next(waiting):
                    running.remove(worker)


def _begin(waiting: Iterator[str]) -> "_Worker | None":
    name = next(waiting, None)
    return None if name is None else _Worker(name)


@dataclass
class _Worker:
    """A process that is at one row at a time, until it fails."""

    name: str

    def __post_init__(self) -> None:
        self._start()
        self._give(self.name)

    def _start(self) -> None:
        os.environ.update(_SETTINGS)  # before torch is loaded, which the process inherits
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def _give(self, name: str) -> None:
        self.name, self._deadline = name, time.monotonic() + ROW_LIMIT_S
        self.pipe.send(name)

    def outcome(self) -> Record | None:
        """The record, once there is one: the process's, or that it died or was stopped at the limit."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except EOFError:
            self._process.join()
            return self._failed(f"the process died with status {self._process.exitcode}")
        if time.monotonic() < self._deadline:
            return None
        self._process.kill()
        return self._failed(f"not done in {ROW_LIMIT_S:g} s")

    def _failed(self, error: str) -> Record:
        self._process.join()
        self.pipe.close()
        self._start()
        return Record(self.name, ways=(Way("run", Outcome.FAULT, error), Way("none", Outcome.FAULT, error)))

    def next(self, waiting: Iterator[str]) -> bool:
        """Whether there was another row to be given."""
        name = next(waiting, None)
        if name is None:
            self._process.kill()
            return False
        self._give(name)
        return True


def _serve(pipe: Connection) -> None:
    import torch

    from benchmarks.models.steps import examine
    from benchmarks.models.tiny import Row

    silence = os.open(os.devnull, os.O_WRONLY)  # what models print as they run
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    while True:
        name = pipe.recv()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AWQ_CACHE"] = folder
            record = examine(Row.named(name), Path(folder))
        pipe.send(record)
