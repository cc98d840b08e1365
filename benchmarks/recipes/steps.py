"""The steps of a row, each in a process of its own, and their results, kept from the last run of the same command."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.recipes.rows import Row
from benchmarks.recipes.settings import Settings
from quantization.recipe import Awq, Recipe

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "run_awq.py")
QUESTIONS = "truthfulqa_mc2,winogrande,arc_challenge"


class StepFailed(Exception):
    """The command and the last line it wrote to standard error."""


class Kind(Enum):
    QUANTIZE = "quantize"
    SPEED = "speed"
    PERPLEXITY = "perplexity"
    QUESTIONS = "questions"


@dataclass(frozen=True)
class Step:
    """command: what Python is given; with `--json FILE` after it, it writes its result there."""

    row: str
    kind: Kind
    command: tuple[str, ...]

    def _file(self, work: Path) -> Path:
        return work / "results" / f"{self.row}.{self.kind.value}.json"

    def kept(self, work: Path) -> Any:
        """What the command found when it was run last, or None if that was another command."""
        file = self._file(work)
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return before["result"] if before.get("command") == list(self.command) else None

    def run(self, work: Path) -> Any:
        """What the command finds now, which is kept in `work`. Raises `StepFailed`."""
        file, start = self._file(work), time.perf_counter()
        result = self._run(file.with_suffix(".out"), work / "cache")
        whole = {"command": self.command, "wall_s": time.perf_counter() - start, "result": result}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        os.replace(partial, file)
        return result

    def _run(self, out: Path, cache: Path) -> Any:
        out.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "AWQ_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *self.command, "--json", str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise StepFailed(f"{shlex.join(self.command)}: {last}")
        result = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
        return result


def steps(row: Row, settings: Settings) -> Iterator[Step]:
    """Quantize, if the row has a recipe; then time and evaluate what came of it, or the float model."""
    which, precision, alone = ["--model_name", settings.model_name], ["--precision", "bf16"], []
    if row.recipe is not None:
        checkpoint = str(settings.work / "checkpoints" / row.name)
        make = [*which, *options(recipe_of(row.recipe, settings)), "--overwrite", "--output", checkpoint]
        yield Step(row.name, Kind.QUANTIZE, (RUN, "--task", "quantize", *make))
        which, precision = ["--checkpoint", checkpoint], []
        alone = ["--float_model", "none"]  # it has a row of its own
    time_it = ("-m", "benchmarks.recipes.speed", *which, *_option("--threads", settings.threads))
    yield Step(row.name, Kind.SPEED, time_it)
    evaluate = [RUN, "--task", "evaluate", *which, *precision, "--flash_attention"]
    evaluate += _option("--num_torch_threads", settings.threads) + _option("--eval_data", settings.eval_data)
    text = _option("--dataset", settings.dataset) + _option("--n_windows", settings.n_windows)
    yield Step(row.name, Kind.PERPLEXITY, (*evaluate, "--tasks", "perplexity", *text))
    limit = _option("--limit", settings.limit)
    yield Step(row.name, Kind.QUESTIONS, (*evaluate, "--tasks", QUESTIONS, *limit, *alone))


def recipe_of(recipe: Recipe, settings: Settings) -> Recipe:
    """A row's recipe with what the settings say of it; of the text nothing where none is read."""
    sized = replace(recipe, group_size=settings.group_size, flash_attention=True)
    if recipe.awq is Awq.NONE and not recipe.method.reads_text(awq=False):
        return sized
    return replace(sized, calib_data=settings.calib_data, n_samples=settings.n_samples)


def options(recipe: Recipe) -> list[str]:
    """What asks the command for a recipe: its options have the names of the fields, and their defaults."""
    words: list[str] = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if value is True:
            words.append(f"--{field.name}")
        elif value != field.default:
            words += [f"--{field.name}", value.value if isinstance(value, Enum) else str(value)]
    return words


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]
