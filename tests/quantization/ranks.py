"""The command as several processes, as torchrun starts it."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HANGS_S = 900  # nothing takes that long

# Runs the command with every block put on record; {} may change more of it. `ends` is how a process is killed.
PRELUDE = """
import os, signal, sys
from awq_cli.main import main
from checkpoints import journal
from quantization.work import Work
journal.WORTH = 0
def ends():
    os.kill(os.getpid(), signal.SIGKILL)
after_block = lambda work, index: None
{}
whole = Work.quantize_unit
def quantize_unit(work, index):
    whole(work, index)
    after_block(work, index)
Work.quantize_unit = quantize_unit
main()
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Of standard error, but for notes."""
        return [line for line in self.err.splitlines() if not line.startswith("note: ")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run_ranks(folder: Path, size: int, *arguments: object, change: str = "") -> list[Ended]:
    """What became of each rank, in order. change: of the program, with RANK as `rank`."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT", "PYTHONPATH": str(ROOT)}
    code = PRELUDE.format(f"rank = int(os.environ['RANK'])\n{change}")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)
    started = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **streams)
        for rank in range(size)
    ]
    try:
        return [Ended(process.wait(HANGS_S), *process.communicate()) for process in started]
    finally:
        for process in started:
            process.kill()
