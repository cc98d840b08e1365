"""Whole models, prompt and continuation: the fused decoder, the model's own modules and other programs, in turns.

Every contestant lives in a process of its own (benchmarks/cpu/contestant.py), loaded once, and waits while another
runs, which begins when the threads of the one before are at rest. A round gives each one prompt and its continuation;
figures are medians over the rounds.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.cpu import new_memory
from benchmarks.cpu.contestant import Answer, Facts, Job, Spec
from benchmarks.cpu.report import Engine, ModelRow, ModelRun, Start, Timed, Way
from benchmarks.cpu.roofs import Roof, limits_of
from benchmarks.machine import wait_for_rest
from benchmarks.typed import T, from_json, to_json

ROOT = Path(__file__).parents[2]
WEIGHTS = (".safetensors", ".bin", ".data")  # files of weights in a directory
FIRST_PROMPT = 16  # tokens, for the time to the first token of a fresh process


@dataclass(frozen=True)
class Entry:
    """Something to run. path: a file, or a directory with its weights; read_bytes: of these, what a token reads, where
    the contestant cannot say.
    """

    way: Way
    path: Path
    read_bytes: int | None = None

    @property
    def stored_bytes(self) -> int:
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file == self.path or file.suffix in WEIGHTS)


@dataclass(frozen=True)
class Race:
    """How a model is run. starts: fresh processes of each contestant; programs: where others are: an
    interpreter that has it, or of ik_llama.cpp its directory.
    """

    prompt: int
    new: int
    rounds: int
    starts: int
    threads: int
    programs: Mapping[Engine, str]

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple((17 * i + i * i) % 29989 + 3 for i in range(count))  # no text: every id costs the same

    def spec(self, entry: Entry) -> Spec:
        engine, positions = entry.way.engine, max(self.prompt + self.new, FIRST_PROMPT)
        return Spec(engine, str(entry.path), self.threads, positions, program=self.directory(engine) or "")

    def directory(self, engine: Engine) -> str | None:
        return self.programs.get(engine) if engine is Engine.IK else None

    def python(self, engine: Engine) -> str:
        return sys.executable if self.directory(engine) else self.programs.get(engine, sys.executable)


@dataclass(frozen=True)
class FirstToken:
    """One start of a process."""

    seconds: float
    load_s: float
    new_memory_gb_s: float


class Contestant:
    """A process that has read a short prompt."""

    def __init__(self, entry: Entry, race: Race):
        self.entry = entry
        command = [race.python(entry.way.engine), "-m", "benchmarks.cpu.contestant", to_json(race.spec(entry))]
        rate = new_memory.measure(entry.stored_bytes, race.threads)
        start = time.perf_counter()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.facts = self._answer(Facts)
        self.ask(Job(race.tokens(FIRST_PROMPT), ()))
        self.first = FirstToken(time.perf_counter() - start, self.facts.load_s, rate / 1e9)

    @property
    def number(self) -> int:
        return self._process.pid

    def ask(self, job: Job) -> Answer:
        self._process.stdin.write(to_json(job) + "\n")
        self._process.stdin.flush()
        return self._answer(Answer)

    def _answer(self, kind: type[T]) -> T:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.entry.way} stopped with status {self._process.wait()}")
        return parse(kind, line, self.entry.way)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def parse(kind: type[T], line: str, way: Way) -> T:
    """What a contestant wrote. Exits with one line where it is something else."""
    try:
        return from_json(kind, line)
    except ValueError as error:
        raise SystemExit(f"{way} wrote {line.strip()!r}, which is no {kind.__name__}: {error}") from error


def run(model: str, entries: list[Entry], race: Race, roofs: list[Roof]) -> ModelRun:
    """entries: ours first, as ours alone knows the model's size."""
    contestants, starts = [], []
    for entry in entries:
        begun = [Contestant(entry, race)]
        for _ in range(race.starts - 1):
            begun[-1].close()
            begun.append(Contestant(entry, race))
        starts.append([one.first for one in begun])
        contestants.append(begun[-1])
    times, answers = _rounds(contestants, race, roofs)
    for contestant in contestants:
        contestant.close()
    size = contestants[0].facts.weights.size
    cache_bytes = (race.prompt + race.new) * size.position_bytes
    rows = [
        row(one.entry, one.facts, answered, start_of(one.entry, one.facts, answered[-1], first, cache_bytes))
        for one, answered, first in zip(contestants, answers, starts, strict=True)
    ]
    return ModelRun(model, race.prompt, race.new, size, limits_of(roofs, times), tuple(rows))


def _rounds(
    contestants: list[Contestant], race: Race, roofs: list[Roof]
) -> tuple[list[list[float]], list[list[Answer]]]:
    """Times of each roof and answers of each contestant; of the first round, a warm-up, none of the latter."""
    tokens = race.tokens(race.prompt + race.new)
    job = Job(tokens[: race.prompt], tokens[race.prompt :])
    numbers = [contestant.number for contestant in contestants] + [os.getpid()]
    times: list[list[float]] = [[] for _ in roofs]
    answers: list[list[Answer]] = [[] for _ in contestants]
    for _ in range(race.rounds + 1):
        wait_for_rest(numbers)
        for roof, taken in zip(roofs, times, strict=True):
            roof.run()
            start = time.perf_counter()
            roof.run()
            taken.append(time.perf_counter() - start)
        for contestant, answered in zip(contestants, answers, strict=True):
            wait_for_rest(numbers)
            answered.append(contestant.ask(job))
    return times, [answered[1:] for answered in answers]


def row(entry: Entry, facts: Facts, answered: list[Answer], start: Start) -> ModelRow:
    read_bytes = facts.weights.read_bytes if facts.weights else entry.read_bytes
    prompt = Timed.of([answer.prompt_s for answer in answered])
    return ModelRow(entry.way, read_bytes, prompt, Timed.of([answer.token_s for answer in answered]), start)


def start_of(entry: Entry, facts: Facts, last: Answer, starts: list[FirstToken], cache_bytes: int) -> Start:
    stored = entry.stored_bytes
    return Start(
        starts=len(starts),
        first_token_s=median(start.seconds for start in starts),
        load_s=median(start.load_s for start in starts),
        new_memory_gb_s=median(start.new_memory_gb_s for start in starts),
        stored_bytes=stored,
        weight_bytes=facts.weights.all_bytes if facts.weights else stored,
        cache_bytes=cache_bytes,
        runtime_bytes=facts.runtime_bytes,
        peak_bytes=last.peak_bytes,
        held_bytes=last.held_bytes,
    )
