"""Tokens a second of one text alone and of several at once, in the batch itself and over HTTP."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import httpx
import numpy as np

from benchmarks.serving.server import Server
from benchmarks.table import Table
from engine.batching import Asked, Batch
from engine.stopping import Ended

PROMPT_TOKENS = 16
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


def measure(how: str, counts: tuple[int, ...], rounds: int, run: Callable[[int, int], list[list[float]]]) -> list[Row]:
    """Rounds in which every number of streams has its turn, so that what else the machine does meets all alike."""
    rates = {count: [] for count in counts}
    run(max(counts), 0)
    for number in range(1, rounds + 1):
        for count in counts:
            rates[count].append(rate(run(count, number)))
    alone = rates[counts[0]]
    return [
        Row(how, count, rates[count], [a / b for a, b in zip(rates[count], alone, strict=True)]) for count in counts
    ]


def table(rows: list[Row], title: str) -> Table:
    shown = []
    for row in rows:
        bar = BARS.get(row.streams)
        shown.append(
            [row.how, str(row.streams), f"{median(row.rates):,.1f}", f"{median(row.ratios):.2f}",
             f"{min(row.ratios):.2f} to {max(row.ratios):.2f}", "-" if bar is None else f"{bar:.1f}"]
        )  # fmt: skip
    return Table(title, ["", "streams", "tokens/s", "times one", "of rounds", "bar"], shown)
