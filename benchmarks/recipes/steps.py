"""The steps of a draw of a row, each in a process of its own, and their results, kept for the same command."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.recipes.peers import Peer
from benchmarks.recipes.rows import Family, Row
from benchmarks.recipes.settings import Settings
from quantization.recipe import DEFAULT_GROUP_SIZES, Recipe

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "run_awq.py")
QUESTIONS = "truthfulqa_mc2,winogrande,arc_challenge"
TOGETHER = 12  # checkpoints that the yardstick holds in memory


class StepFailed(Exception):
    """The command and the last line it wrote to standard error."""


class Kind(Enum):
    QUANTIZE = "quantize"
    SPEED = "speed"
    PERPLEXITY = "perplexity"
    QUESTIONS = "questions"
    YARDSTICK = "yardstick"


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
        if self.kind is Kind.QUANTIZE:  # scales that were searched before would not be searched again, nor timed
            shutil.rmtree(_cache(work, self.row), ignore_errors=True)
        start = time.perf_counter()
        result = found(self.command, work, self.row)
        self.keep(work, result, time.perf_counter() - start)
        return result

    def keep(self, work: Path, result: Any, seconds: float) -> None:
        file = self._file(work)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(
            json.dumps({"command": self.command, "wall_s": seconds, "result": result}, indent=1), encoding="utf-8"
        )
        os.replace(partial, file)


def _cache(work: Path, row: str) -> Path:
    return work / "cache" / row


def found(command: Sequence[str], work: Path, row: str) -> Any:
    """What a command writes as JSON where it is asked to. Raises `StepFailed`.

    Every row searches its own scales, as whoever makes that alone would: the minutes of all are told.
    """
    work.mkdir(parents=True, exist_ok=True)
    out = work / "found.json"
    environment = {**os.environ, "AWQ_CACHE": str(_cache(work, row)), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command, "--json", str(out)], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StepFailed(f"{shlex.join(command)}: {last}")
    result = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return result


def lay_on(pending: Sequence[Step], work: Path) -> None:
    """Run steps of the yardstick, many at once: the float model reads each text once for all. Raises `StepFailed`."""
    for start in range(0, len(pending), TOGETHER):
        some = pending[start : start + TOGETHER]
        begun = time.perf_counter()
        recipes = [word for step in some for word in step.command[-2:]]
        texts = found([*some[0].command[:-2], *recipes], work, some[0].row)
        seconds = (time.perf_counter() - begun) / len(some)
        for step in some:
            step.keep(work, {text: kept[step.row][0] for text, kept in texts.items()}, seconds)


def steps(row: Row, draw: int, settings: Settings) -> Iterator[Step]:
    """Quantize, if the row is not the float model's; then time and evaluate what came of it. Only the first draw, 0, is
    timed and asked questions.
    """
    name = row.name if draw == 0 else f"{row.name}.{draw}"
    which, precision, alone = ["--model_name", settings.model], ["--precision", "bf16"], []
    if row.family is not Family.FLOAT:
        checkpoint = str(settings.work / "checkpoints" / name)
        if row.peer is not None:
            made = _peers_command(row.peer, settings)
        else:
            made = (RUN, "--task", "quantize", *which, *options(recipe_of(row, draw, settings)), "--overwrite")
        yield Step(name, Kind.QUANTIZE, (*made, "--output", checkpoint))
        which, precision = ["--checkpoint", checkpoint], []
        alone = ["--float_model", "none"]  # it has a row of its own
    if draw == 0 and row.peer is None and not settings.untimed:
        time_it = ("-m", "benchmarks.recipes.speed", *which, *_option("--threads", settings.threads))
        yield Step(name, Kind.SPEED, time_it)
    evaluate = [RUN, "--task", "evaluate", *which, *precision, "--flash_attention"]
    evaluate += _option("--num_torch_threads", settings.threads)
    data = _option("--eval_data", settings.eval_data)
    text = _option("--dataset", settings.dataset) if settings.dataset else data
    text = text + _option("--n_windows", settings.n_windows)
    yield Step(name, Kind.PERPLEXITY, (*evaluate, "--tasks", "perplexity", *text, *alone))
    if draw == 0 and row.peer is None and settings.eval_data is not None:
        asked = data + _option("--limit", settings.limit)
        yield Step(name, Kind.QUESTIONS, (*evaluate, "--tasks", QUESTIONS, *asked, *alone))
    if settings.web is not None and row.family is not Family.FLOAT:
        apart = ["-m", "benchmarks.yardstick", "--model_name", settings.model, "--web", settings.web]
        apart += _option("--passages", settings.passages) + ["--recipe", f"{name}={checkpoint}"]
        yield Step(name, Kind.YARDSTICK, tuple(apart))


def _peers_command(peer: Peer, settings: Settings) -> tuple[str, ...]:
    made = ["-m", "benchmarks.recipes.peers", "--writer", peer.writer, "--bits", str(peer.bits)]
    made += ["--symmetric"] * peer.symmetric + ["--how", json.dumps(peer.how), "--model_name", settings.model]
    made += ["--group_size", str(settings.group_size or DEFAULT_GROUP_SIZES[0]), "--calib_data", settings.calib_data]
    made += ["--n_samples", str(settings.n_samples), "--environments", str(settings.environments)]
    made += ["--patience", str(settings.patience)]
    return tuple(made)


def recipe_of(row: Row, draw: int, settings: Settings) -> Recipe:
    """A row's recipe with what the settings say of it; of the text nothing where none is read."""
    size = None if row.recipe.mixed else settings.group_size
    sized = replace(row.recipe, group_size=size, flash_attention=True)
    if not row.drawn:
        return sized
    seed = Recipe.seed + draw
    return replace(sized, calib_data=settings.calib_data, n_samples=settings.n_samples, seed=seed)


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
