"""What was found of each row, on record in a file of its own, so that a table may be filled on several days."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.recipes.rows import Family, Row
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.speed import Speed
from benchmarks.recipes.steps import Kind
from benchmarks.typed import typed
from benchmarks.yardstick.measure import Told
from qlinear.backends.cpu import native
from quantization.recipe import Recipe

FLOAT_BITS = 16.0
ANSWERS = {"truthfulqa_mc2": "acc", "winogrande": "acc", "arc_challenge": "acc_norm"}


@dataclass(frozen=True)
class Value:
    """A figure and its standard error, None where there is none."""

    value: float
    stderr: float | None

    def cell(self, digits: int) -> str:
        return f"{self.value:.{digits}f}" + ("" if self.stderr is None else f" ± {self.stderr:.{digits}f}")


@dataclass(frozen=True)
class Draw:
    """One checkpoint. seconds: to make it, 0 where they are not told, on `processor`; search: of those, until all
    codes were chosen, None where that is not told; bits: a weight of the quantized layers; versions: of the packages of
    the other program that made it; texts: the yardstick's, by their names; stored: bytes of all tensors, None where not
    told.
    """

    seconds: float
    search: float | None
    processor: str
    bits: float
    versions: dict[str, str]
    perplexity: Value
    texts: dict[str, Told]
    stored: int | None = None


@dataclass(frozen=True)
class Timed:
    speed: Speed
    processor: str


@dataclass(frozen=True)
class Figures:
    """One row's. draws: by their seed; answers: by task, None where none were asked."""

    draws: dict[str, Draw]
    timed: Timed | None
    answers: dict[str, Value]

    def over(self, earlier: "Figures") -> "Figures":
        """With what an earlier run found and this one did not look for."""
        draws = dict(sorted((earlier.draws | self.draws).items()))
        return Figures(draws, self.timed or earlier.timed, self.answers or earlier.answers)


@dataclass(frozen=True)
class Record:
    """settings: what all figures have in common; abouts: what each model is; windows: what perplexities are of, in
    words; rows: by model and by the row's name; ended: in words, of rows of other programs that took too long.
    """

    settings: dict[str, str | None]
    windows: str
    abouts: dict[str, str]
    rows: dict[str, dict[str, Figures]]
    ended: dict[str, dict[str, str]]

    @staticmethod
    def read(file: Path) -> "Record | None":
        """None where there is none. Raises `ValueError` for anything else than a record."""
        if not file.is_file():
            return None
        return typed(Record, json.loads(file.read_text(encoding="utf-8")))

    def joined(
        self, model: str, about: str, windows: str, found: Mapping[str, Figures], ended: Mapping[str, str] | None = None
    ) -> "Record":
        """With the rows of a model that a run has found, and those of programs that it had to end."""
        rows = dict(self.rows.get(model, {}))
        for name, figures in found.items():
            rows[name] = figures.over(rows[name]) if name in rows else figures
        left = {
            name: told for name, told in (self.ended.get(model, {}) | dict(ended or {})).items() if name not in rows
        }
        return replace(
            self, windows=windows or self.windows, abouts={**self.abouts, model: about},
            rows={**self.rows, model: rows}, ended={**self.ended, model: left},
        )  # fmt: skip

    def command(self) -> str:
        """What makes all of it."""
        draws = max(len(figures.draws) for rows in self.rows.values() for figures in rows.values())
        words = [word for model in self.rows for word in ("--model_name", model)]
        asked = any(figures.answers for rows in self.rows.values() for figures in rows.values())
        words += ["--draws", str(draws), *["--eval_data", "DIR"] * asked]
        given = {name: value for name, value in self.settings.items() if value is not None}
        words += [word for name, value in given.items() for word in (f"--{name}", value)]
        return shlex.join(["python", "-m", "benchmarks.recipes", *words])

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, file)


def figures_of(row: Row, results: Mapping[int, Mapping[Kind, Any]], untimed: bool = False) -> Figures:
    """results: of each draw, what its steps wrote as JSON; untimed: see `Settings`."""
    draws = {str(Recipe.seed + draw): _draw(row, of_draw) for draw, of_draw in results.items()}
    if untimed:
        draws = {seed: replace(one, seconds=0.0, search=None) for seed, one in draws.items()}
    first = results[0]
    timed = Timed(typed(Speed, first[Kind.SPEED]), _here()) if Kind.SPEED in first and not untimed else None
    scores = first[Kind.QUESTIONS]["scores"] if Kind.QUESTIONS in first else []
    answers = {s["task"]: Value(s["value"], s["stderr"]) for s in scores if ANSWERS.get(s["task"]) == s["metric"]}
    return Figures(draws, timed, answers)


def _draw(row: Row, results: Mapping[Kind, Any]) -> Draw:
    (score,) = (s for s in results[Kind.PERPLEXITY]["scores"] if s["metric"] == "perplexity")
    perplexity, texts = Value(score["value"], score["stderr"]), typed(dict[str, Told], results.get(Kind.YARDSTICK, {}))
    if row.family is Family.FLOAT:
        return Draw(0.0, None, _here(), FLOAT_BITS, {}, perplexity, texts)
    made = results[Kind.QUANTIZE]
    versions = made.get("versions", {})
    bits, stored = made["size"]["bits_per_weight"], made["size"].get("quantized_bytes")
    seconds, search = made["seconds"], made["seconds"].get("search")
    return Draw(float(seconds["total"]), search and float(search), _here(), bits, versions, perplexity, texts, stored)


def ended(made: Mapping[str, Any]) -> str:
    """Of a program that took too long, how long it had, and where."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"after {made['ended_after']} minutes ({versions}; {_here()})"


def _here() -> str:
    """The processor, and the widest instructions that the kernels use on it: its name does not tell."""
    return f"{processor()} ({native.select_isa()})" if native.is_built() else processor()


def windows_of(results: Mapping[Kind, Any]) -> str:
    """What a perplexity was measured on, in words."""
    read = results[Kind.PERPLEXITY]
    (score,) = (s for s in read["scores"] if s["metric"] == "perplexity")
    return f"{score['examples']} windows of {read['window']} tokens of `{read['dataset']}`"


def empty(settings: Settings) -> Record:
    return Record(settings.shared(), "", {}, {}, {})
