"""Whole models, prompt and continuation: the fused decoder, the model's own modules and llama.cpp, in turns.

Every contestant lives in a process of its own (benchmarks/contestant.py), loaded once, and waits while another runs.
A round gives each one prompt and its continuation; figures are medians over the rounds.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import new_memory
from benchmarks.roofs import Roof
from benchmarks.rows import Row, Start, compare, limits_of, roof_rows, spread

ROOT = Path(__file__).resolve().parent.parent
FIRST_PROMPT = 16  # tokens, for the time to the first token of a fresh process


@dataclass(frozen=True)
class Entry:
    """Something to run. kind: fused, modules or llama.cpp; path: a checkpoint or a GGUF file.

    note: what else tells it from the others; read_bytes: of the weights that a token reads, where the contestant
    cannot say.
    """

    kind: str
    note: str
    bits: int
    group_size: int
    path: Path
    read_bytes: int | None = None

    @property
    def stored_bytes(self) -> int:
        files = self.path.glob("*.safetensors") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)


@dataclass(frozen=True)
class Race:
    """How a model is run. python: the interpreter that has llama.cpp."""

    prompt: int
    new: int
    rounds: int
    starts: int
    threads: int
    python: str

    def tokens(self, count: int) -> list[int]:
        return [(17 * i + i * i) % 29989 + 3 for i in range(count)]  # no text: every id costs the same


class Contestant:
    def __init__(self, entry: Entry, race: Race):
        """Start a process and have it read a short prompt: what it did so far is in `facts`, with first_token_s."""
        self.entry, self.runs = entry, []
        spec = dict(kind=entry.kind, path=str(entry.path), threads=race.threads, context=race.prompt + race.new)
        python = race.python if entry.kind == "llama.cpp" else sys.executable
        command = [python, "-m", "benchmarks.contestant", json.dumps(spec)]
        rate = new_memory.measure(entry.stored_bytes, race.threads)
        start = time.perf_counter()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.facts = self._answer()
        self.ask(race.tokens(FIRST_PROMPT), [])
        self.facts |= dict(first_token_s=time.perf_counter() - start, new_memory_gb_s=rate / 1e9)

    def ask(self, prompt: list[int], continuation: list[int]) -> dict:
        self._process.stdin.write(json.dumps(dict(prompt=prompt, continuation=continuation)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.entry.kind} {self.entry.note} stopped with status {self._process.wait()}")
        return json.loads(line)

    @property
    def impl(self) -> str:
        kind = "" if self.entry.kind == "llama.cpp" else f" {self.entry.kind}"
        return f"{self.facts['impl']}{kind} {self.entry.note}"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def run(model: str, entries: list[Entry], race: Race, limits: list[Roof]) -> tuple[list[Row], list[Start]]:
    """Rows of decode and prefill and of the limits taken in the same rounds, and one `Start` for each contestant."""
    contestants, first = [], []
    for entry in entries:
        begun = [Contestant(entry, race)]
        for _ in range(race.starts - 1):
            begun[-1].close()
            begun.append(Contestant(entry, race))
        first.append([one.facts for one in begun])
        contestants.append(begun[-1])
    tokens = race.tokens(race.prompt + race.new)
    times: list[list[float]] = [[] for _ in limits]
    for round_ in range(race.rounds + 1):
        for roof, taken in zip(limits, times, strict=True):
            roof.run()
            start = time.perf_counter()
            roof.run()
            taken.append(time.perf_counter() - start)
        for contestant in contestants:
            timed = contestant.ask(tokens[: race.prompt], tokens[race.prompt :])
            if round_ > 0:  # the first one is a warm-up
                contestant.runs.append(timed)
    for contestant in contestants:
        contestant.close()
    facts = contestants[0].facts  # of the model: ours is always the first
    machine = roof_rows(limits, times, 0, 0, 0)
    rows = _rows(model, "decode", contestants, race, facts, limits_of(machine))
    rows += _rows(model, "prefill", contestants, race, facts, limits_of(machine))
    return machine + rows, [_start(model, c, f, race, facts) for c, f in zip(contestants, first, strict=True)]


def _rows(
    model: str, what: str, contestants: list[Contestant], race: Race, facts: dict, limits: tuple[float, float]
) -> list[Row]:
    rows = []
    decode = what == "decode"
    m = 1 if decode else race.prompt
    positions = race.prompt + race.new / 2 if decode else race.prompt / 2  # read for a token, on average
    for c in contestants:
        taken = [run["step_s" if decode else "prefill_s"] for run in c.runs]
        seconds = median(taken)
        weights = c.entry.read_bytes or c.facts["read_bytes"]
        gb_s = (weights + positions * facts["position_bytes"]) / seconds / 1e9
        gflop_s = 2 * (m * facts["block_products"] + facts["head_products"]) / seconds / 1e9
        what_it_is = f"{what} {model}", c.impl, c.entry.bits, c.entry.group_size, m, 0, 0
        speed = gb_s, gflop_s, gb_s / limits[0], gflop_s / limits[1]
        rows.append(Row(*what_it_is, seconds, spread(taken), *speed))
    return compare(rows)


def _start(model: str, contestant: Contestant, starts: list[dict], race: Race, facts: dict) -> Start:
    size = contestant.entry.stored_bytes
    own, last = contestant.facts, contestant.runs[-1]
    return Start(
        model,
        contestant.impl,
        len(starts),
        median(start["first_token_s"] for start in starts),
        median(start["load_s"] for start in starts),
        median(start["new_memory_gb_s"] for start in starts),
        size,
        own.get("weight_bytes", size),
        (race.prompt + race.new) * facts["position_bytes"],
        own["runtime_bytes"],
        last["peak_bytes"],
        last["held_bytes"],
    )
