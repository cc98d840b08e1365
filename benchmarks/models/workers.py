"""Rows looked at in processes of their own: one that crashes or hangs costs its row, not the table."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from benchmarks.models.record import Outcome, Record, Way

# For a whole row, by the clock: native code does not hear a signal, and what waits uses no processor time.
ROW_LIMIT_S = 600.0
_SETTINGS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}

# Name of a row -> what is found out about it. Called in a process of its own, so it has to be a module's.
Look = Callable[[str], Record]


def run_rows(
    names: Sequence[str], workers: int, look: Look, done: Callable[[Record], None], limit_s: float = ROW_LIMIT_S
) -> None:
    """Look at every row, `workers` at a time; `done` is called with each record as it comes."""
    waiting = iter(names)
    running = [_Worker(look, limit_s) for _ in range(min(workers, len(names)))]
    running = [worker for worker in running if worker.begin(waiting)]
    while running:
        wait([worker.pipe for worker in running], timeout=0.5)
        for worker in list(running):
            record = worker.outcome()
            if record is not None:
                done(record)
                if not worker.begin(waiting):
                    running.remove(worker)


class _Worker:
    """A process that is at one row at a time; another takes its place where it dies or has to be stopped."""

    def __init__(self, look: Look, limit_s: float):
        self._look, self._limit_s = look, limit_s
        self._start()

    def _start(self) -> None:
        os.environ.update(_SETTINGS)  # before torch is loaded, in the process, which inherits them
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._look), daemon=True)
        self._process.start()
        other.close()

    def begin(self, waiting: Iterator[str]) -> bool:
        """Whether there was another row to be given; if not, the process ends."""
        name = next(waiting, None)
        if name is None:
            self._end()
            return False
        self.name, self._deadline = name, time.monotonic() + self._limit_s
        self.pipe.send(name)
        return True

    def outcome(self) -> Record | None:
        """The record, once there is one: the process's, or that it died or was stopped at the limit."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return self._failed(f"the process died with status {self._process.exitcode}")
        if time.monotonic() < self._deadline:
            return None
        return self._failed(f"not done in {self._limit_s:g} s")

    def _failed(self, error: str) -> Record:
        self._end()
        self._start()
        return Record(self.name, ways=(Way("run", Outcome.FAULT, error, "the whole row"),))

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, look: Look) -> None:
    import torch

    silence = os.open(os.devnull, os.O_WRONLY)  # what models print as they run
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    while True:
        pipe.send(look(pipe.recv()))
