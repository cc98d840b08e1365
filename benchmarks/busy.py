"""Tokens a second while other processes keep the machine's cores busy.

\b
    python -m benchmarks.busy --checkpoint DIRECTORY

Neighbours that do nothing but count are started, none to as many as there are cores; beside them the model writes on
one thread, and on as many as there are cores. Each figure is the median of `--repeats` answers of 200 tokens.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from benchmarks.machine import processor
from benchmarks.table import Table

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 200
WRITE = f"""
import sys, time
from statistics import median
import run_awq
from engine.generate import generate
model = run_awq.load(sys.argv[1])
prompt = model.encode_prompt("Hello, my name is", chat=False)
decoder = model.decoder(len(prompt) + {NEW_TOKENS})
rates = []
for _ in range(1 + int(sys.argv[2])):
    seconds = [token.seconds for token in generate(decoder, prompt, {NEW_TOKENS})][1:]
    rates.append(len(seconds) / sum(seconds))
print(median(rates[1:]))
"""


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that take a whole core each."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def rate(checkpoint: str, threads: int, repeats: int) -> float:
    """Tokens a second in a process of its own."""
    command, on = [sys.executable, "-c", WRITE, checkpoint, str(repeats)], {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | on, check=True, capture_output=True, text=True)
    return float(done.stdout)


@click.command(help=__doc__)
@click.option("--checkpoint", required=True, help="A quantized model.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
def main(checkpoint: str, repeats: int) -> None:
    cores, rows = len(os.sched_getaffinity(0)), []
    for count in range(cores + 1):
        with neighbours(count):
            one, all_of_them = (rate(checkpoint, threads, repeats) for threads in (1, cores))
        best = max(one, all_of_them)
        rows.append([str(count), f"{one:.1f}", f"{all_of_them:.1f}", f"{all_of_them / best:.2f}"])
    headings = ["busy neighbours", "1 thread", f"{cores} threads", "of the better"]
    click.echo(Table("Tokens a second beside others", headings, rows, texts=0).markdown())
    click.echo(f"\n{processor()}, {cores} cores, load average {os.getloadavg()[0]:.0f} at the end.")


if __name__ == "__main__":
    main()
