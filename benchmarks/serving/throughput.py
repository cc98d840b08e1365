"""Tokens a second of one text alone and of several at once, in the batch itself and over HTTP."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from benchmarks.serving.server import Server
from benchmarks.table import Table
from engine.batching import Asked, Batch
from engine.stopping import Ended
from qlinear.backends.stack import Reading, StackDecoder

PROMPT_TOKENS = 16
PAST, STEPS = 64, 12  # of a step whose CPU time is taken: tokens before it, and steps of a round
# `(streams, seed)` -> when each token of each stream came.
Run = Callable[[int, int], list[list[float]]]
# Of several texts together, as a multiple of what one has.
BARS = {4: 2.5, 8: 3.5}


@dataclass(frozen=True)
class Row:
    """rates: tokens a second of all streams together, one a round; ratios: by that of one stream in the same round."""

    how: str
    streams: int
    rates: list[float]
    ratios: list[float]


class _Counting:
    """A listener that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.done = threading.Event()

    def wrote(self, token: int, logits: np.ndarray) -> bool:
        self.times.append(time.perf_counter())
        return True

    def ended(self, how: Ended, error: Exception | None) -> None:
        self.done.set()


def step_rates(stack: StackDecoder, counts: tuple[int, ...], rounds: int) -> list[Row]:
    """Tokens a second of a core's own time, of the quickest of some steps: what else the machine does counts little.

    For one thread, which is the caller.
    """
    random, nothing = np.random.default_rng(0), np.empty((0, stack.vocabulary), np.float32)
    for slot in range(max(counts)):
        stack.read([Reading(random.integers(100, stack.vocabulary, PAST), 0, 0, slot)], nothing)

    def step(count: int) -> float:
        out = np.empty((count, stack.vocabulary), np.float32)
        readings = [Reading(np.array([100 + slot]), PAST, 1, slot) for slot in range(count)]
        begin = time.thread_time()
        stack.read(readings, out)
        return time.thread_time() - begin

    rates = {count: [] for count in counts}
    for _ in range(rounds):
        turns = [[step(count) for count in counts] for _ in range(STEPS)]
        for count, seconds in zip(counts, map(min, zip(*turns, strict=True)), strict=True):
            rates[count].append(count / seconds)
    return _compared("CPU time", rates)


def llama_cpp_step_rates(python: str, path: str, counts: tuple[int, ...], rounds: int) -> list[Row]:
    """The same of llama.cpp, with as many slots."""
    texts = ",".join(map(str, counts))
    command = [python, str(Path(__file__).with_name("llama_cpp_steps.py")), path, texts, rounds, PAST, STEPS]
    found = json.loads(subprocess.check_output(list(map(str, command))))
    return _compared("llama.cpp, CPU time", {count: found[str(count)] for count in counts})


def batch_times(batch: Batch, streams: int, tokens: int, seed: int) -> list[list[float]]:
    """When each token came, of random prompts that have nothing in common."""
    random = np.random.default_rng(seed)
    heard = [_Counting() for _ in range(streams)]
    for one in heard:
        batch.add(Asked(random.integers(100, batch.decoder.vocabulary, PROMPT_TOKENS), tokens), one)
    for one in heard:
        one.done.wait()
    return [one.times for one in heard]


def served_times(server: Server, streams: int, tokens: int, seed: int) -> list[list[float]]:
    """The same over HTTP, where a token comes as an event."""

    def stream(number: int) -> list[float]:
        times = []
        body = server.body(f"Chapter {1000 * seed + number}. {'It was so. ' * 3}", tokens, stream=True)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=600) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    times.append(time.perf_counter())
        return times

    with ThreadPoolExecutor(streams) as pool:
        return list(pool.map(stream, range(streams)))


def rate(times: list[list[float]]) -> float:
    """Tokens a second of all, while all of them are being written."""
    begin, end = max(one[0] for one in times), min(one[-1] for one in times)
    return sum(begin < at <= end for one in times for at in one) / (end - begin)


def measure(
    runs: dict[str, Callable[[int, int], list[list[float]]]], counts: tuple[int, ...], rounds: int
) -> list[Row]:
    """Rounds in which every way and number of streams has its turn, so that what else the machine does meets all alike.

    runs: `(streams, seed)` -> when each token of each stream came, by the name of the way.
    """
    rates = {how: {count: [] for count in counts} for how in runs}
    for run in runs.values():
        run(max(counts), 0)
    for number in range(1, rounds + 1):
        for count in counts:
            for how, run in runs.items():
                rates[how][count].append(rate(run(count, number)))
    return [row for how in runs for row in _compared(how, rates[how])]


def _compared(how: str, rates: dict[int, list[float]]) -> list[Row]:
    alone = next(iter(rates.values()))
    return [Row(how, count, some, [a / b for a, b in zip(some, alone, strict=True)]) for count, some in rates.items()]


def table(rows: list[Row], title: str) -> Table:
    shown = []
    for row in rows:
        bar = BARS.get(row.streams)
        shown.append(
            [row.how, str(row.streams), f"{median(row.rates):,.1f}", f"{median(row.ratios):.2f}",
             f"{min(row.ratios):.2f} to {max(row.ratios):.2f}", "-" if bar is None else f"{bar:.1f}"]
        )  # fmt: skip
    return Table(title, ["", "streams", "tokens/s", "times one", "of rounds", "bar"], shown)
