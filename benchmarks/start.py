"""How long a user waits: from the start of a process to the end of one that writes a single token.

\b
    python -m benchmarks.start --checkpoint DIRECTORY --checkpoint ANOTHER
    python -m benchmarks.start --checkpoint DIRECTORY --gguf FILE     llama.cpp beside it, where its binding is there

They take turns, `--repeats` times after one that is not counted, so that all files lie in the system's cache.
The processor's time is that of all threads; on a machine with other work to do it says more than the clock's.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from benchmarks.machine import processor
from benchmarks.table import Table

ROOT = Path(__file__).parents[1]
PROMPT = "The sixteen words of this prompt are here so that there is something to read first"
LLAMA_CPP = (
    "import sys; from llama_cpp import Llama; "
    "model = Llama(sys.argv[1], n_ctx=256, n_threads=int(sys.argv[2]), verbose=False); "
    "model.eval(list(range(100, 116))); print(model.sample(temp=0))"  # of random weights there may be no words
)


@dataclass(frozen=True)
class Start:
    """Medians. seconds: from start to end; processor_s: of all threads; peak_mb: the largest resident set."""

    name: str
    seconds: float
    processor_s: float
    peak_mb: float


def ours(checkpoint: str, *more: str) -> list[str]:
    run = [sys.executable, str(ROOT / "run_awq.py"), "--task", "decode", "--checkpoint", checkpoint, "--raw", "--quiet"]
    return [*run, "--prompt", PROMPT, "--max_new_tokens", "1", *more]


def measure(commands: dict[str, list[str]], repeats: int) -> list[Start]:
    turns = [[_once(command) for command in commands.values()] for _ in range(1 + repeats)][1:]
    runs = dict(zip(commands, zip(*turns, strict=True), strict=True))
    return [Start(name, *map(median, zip(*figures, strict=True))) for name, figures in runs.items()]


def _once(command: list[str]) -> tuple[float, float, float]:
    # An installed program has its modules compiled; where Python is told to keep none, each start compiles them anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0:
        raise SystemExit(f"{command[0]} failed: {said.decode(errors='replace')[-500:]}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def table(starts: list[Start]) -> Table:
    rows = [[one.name, f"{one.seconds:.2f}", f"{one.processor_s:.2f}", f"{one.peak_mb:.0f}"] for one in starts]
    return Table("From start to first token", ["", "first token, s", "processor, s", "peak memory, MB"], rows)


@click.command(help=__doc__)
@click.option("--checkpoint", "checkpoints", multiple=True, required=True, help="A quantized model; several in turn.")
@click.option("--gguf", "ggufs", multiple=True, help="A file for llama.cpp.")
@click.option("--llama_python", default=sys.executable, help="A Python that has llama_cpp.  [default: this one]")
@click.option("--modules", is_flag=True, help="The long way beside it: --no_flash_attention.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
def main(checkpoints: tuple[str, ...], ggufs: tuple[str, ...], llama_python: str, modules: bool, repeats: int) -> None:
    commands = {Path(one).name: ours(one) for one in checkpoints}
    if modules:
        commands |= {f"{Path(one).name}, modules": ours(one, "--no_flash_attention") for one in checkpoints}
    threads = str(len(os.sched_getaffinity(0)))
    commands |= {f"llama.cpp, {Path(one).name}": [llama_python, "-c", LLAMA_CPP, one, threads] for one in ggufs}
    click.echo(table(measure(commands, repeats)).markdown())
    click.echo(f"\n{processor()}, {threads} threads, load average {os.getloadavg()[0]:.0f}; medians of {repeats}.")


if __name__ == "__main__":
    main()
