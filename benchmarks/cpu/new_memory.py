"""How fast the system hands over memory that it has to clear first, which whatever loads a model has to wait for.

    python -m benchmarks.cpu.new_memory BYTES THREADS

prints the seconds that a fresh process takes to write that many bytes once, on huge pages, all threads taking part.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch

from qlinear.backends.cpu.memory import huge_pages

ROOT = Path(__file__).parents[2]
GIVEN_BACK = 4.0  # seconds: a virtual machine may hand free memory back to its host, as it does where idle


def measure(size: int, threads: int) -> float:
    """Bytes a second, in a process of its own; whoever loads next finds the memory as cold as it was."""
    command = [sys.executable, "-m", "benchmarks.cpu.new_memory", str(size), str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    time.sleep(GIVEN_BACK)
    return size / float(done.stdout)


def main(size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    memory = huge_pages(size)
    start = time.perf_counter()
    torch.from_numpy(memory).zero_()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
