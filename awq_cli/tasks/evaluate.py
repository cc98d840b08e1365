"""How much of the float model is left: perplexity, divergence and question answering, beside the float model's own."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np

from awq_cli.questions import harness
from awq_cli.questions.files import TEXT
from awq_cli.running import ModelRequest, ModelResult, described, open_model
from awq_cli.texts import WIKITEXT, Text, open_text
from engine.model import Model
from engine.scoring import compare, cut_windows, exponential, negative_log_likelihood
from engine.text import begins_with_bos
from qlinear.errors import OptionError
from qlinear.progress import Note, Watcher, steps

PERPLEXITY = "perplexity"
TASKS = (PERPLEXITY, *harness.FOLDERS)


@dataclass(frozen=True)
class Request(ModelRequest):
    """chat: whether questions go through the model's chat template, None: no."""

    tasks: str
    shots: int | None
    chat: bool | None
    eval_data: str | None
    limit: int | None
    float_model: str | None
    dataset: str | None
    window: int
    n_windows: int | None
    bos: bool | None


@dataclass(frozen=True)
class Score:
    """One metric of one task: of the model, and of the float model where it was evaluated too.

    stderr: standard error, over the questions or the windows of text; None where there is but one.
    examples: how many questions or windows; shots: answered questions before each, by lm-eval's own configuration.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    float_value: float | None
    float_stderr: float | None
    examples: int
    shots: int | None


@dataclass(frozen=True)
class Result(ModelResult):
    """float_model: the one compared with, None if there is none; dataset, window, and bos, whether the text's first
    token was that for the beginning of a text: of the perplexity; None without.
    """

    float_model: str | None
    scores: list[Score]
    dataset: str | None
    window: int | None
    bos: bool | None
    eval_data: str | None
    limit: int | None
    chat: bool
    lm_eval: str | None
    seconds: float


@dataclass(frozen=True)
class Pair:
    """The model, and the float model to be compared with, if any."""

    model: Model
    reference: Model | None

    @property
    def both(self) -> tuple[Model, ...]:
        return (self.model,) if self.reference is None else (self.model, self.reference)


def run(request: Request, watch: Watcher) -> Result:
    start = time.perf_counter()
    tasks = _chosen(request.tasks)
    names = tuple(task for task in tasks if task != PERPLEXITY)
    asked = harness.Asked(names, request.shots, request.chat is True, request.limit)
    if names:
        harness.require_library(names)
    text = _open_text(request, watch) if PERPLEXITY in tasks else None
    loaded = harness.load_tasks(asked, request.eval_data) if names else {}
    model = open_model(request, watch)
    pair = Pair(model, _open_reference(request, model, watch))
    for one in pair.both:  # before the first window is read
        harness.check_fits(loaded, one)
    scores, windows = [], None
    if text is not None:
        windows = _windows(request, pair, text)
        scores += _perplexity(pair, windows, watch)
    if loaded:
        scores += _questions(pair, loaded, asked, watch)
    return Result(
        **described("evaluate", request, model),
        float_model=pair.reference and pair.reference.about.name,
        scores=scores,
        dataset=text and text.name,
        window=request.window if text else None,
        bos=None if windows is None else begins_with_bos(model.tokenizer, windows[0]),
        eval_data=request.eval_data,
        limit=request.limit,
        chat=asked.chat,
        lm_eval=version("lm-eval") if names else None,
        seconds=time.perf_counter() - start,
    )


def _chosen(given: str) -> tuple[str, ...]:
    """The tasks of a list with commas, each once, the program's own in the order of `TASKS` before others."""
    names = dict.fromkeys(name.strip() for name in given.split(","))
    if "" in names:
        raise OptionError(f"--tasks: a name is missing in {given!r}")
    return (*(task for task in TASKS if task in names), *(name for name in names if name not in TASKS))


def _open_text(request: Request, watch: Watcher) -> Text:
    if request.dataset is None and request.eval_data is not None:
        path = Path(request.eval_data) / TEXT
        if not path.is_file():
            raise OptionError(f"--eval_data: {path} is not there; --tasks perplexity needs it, or give --dataset FILE")
        return open_text(str(path))
    source = request.dataset or "raw"
    if source in WIKITEXT:
        watch(Note(f"reading {WIKITEXT[source]} from the hub or its local copy"))
    return open_text(source)


def _open_reference(request: Request, model: Model, watch: Watcher) -> Model | None:
    """The float model to compare with: the one named, or the one that the checkpoint was made from."""
    if request.precision == "bf16" or request.float_model == "none":
        return None
    about, name = model.about, request.float_model or model.about.origin
    if not isinstance(name, str):
        raise OptionError(
            f"{about.checkpoint} does not say which float model it was made from; give --float_model NAME, or none"
        )
    target = model.runner.float_target or request.target
    reference = open_model(request.of_float(name, target, model.flash_attention), watch)
    if reference.about.fingerprint != about.fingerprint:
        watch(Note(f"{name} is not the float model that {about.checkpoint} was made from, or has changed since"))
    return reference


def _windows(request: Request, pair: Pair, text: Text) -> np.ndarray:
    """`(windows, window)` token ids."""
    model = pair.model
    for one in pair.both:
        one.check_fits(request.window, "windows of --window")
    return cut_windows(model.encode(text.text, request.bos), request.window, request.n_windows, text.name)


def _perplexity(pair: Pair, windows: np.ndarray, watch: Watcher) -> list[Score]:
    """Both models read each window, and nothing of one window is kept for the next but sums."""
    if pair.reference is None:
        decoder = pair.model.decoder(windows.shape[1])
        tracked = steps(windows, len(windows), "windows", watch)
        losses = [negative_log_likelihood(decoder, window) / (len(window) - 1) for window in tracked]
        return [Score("perplexity", "perplexity", *_exponential(losses), None, None, len(losses), None)]
    return _compared(pair.model, pair.reference, windows, watch)


def _compared(model: Model, reference: Model, windows: np.ndarray, watch: Watcher) -> list[Score]:
    _check_same_vocabulary(model, reference)
    decoder, beside = (one.decoder(windows.shape[1]) for one in (model, reference))
    found = [compare(decoder, beside, window) for window in steps(windows, len(windows), "windows", watch)]
    perplexity = _exponential([one.nll for one in found])
    of_float = _exponential([one.reference_nll for one in found])
    divergence = _mean([one.divergence for one in found])
    agreement = _mean([one.agreement for one in found])
    return [
        Score("perplexity", "perplexity", *perplexity, *of_float, len(found), None),
        Score("perplexity", "kl_divergence", *divergence, None, None, len(found), None),
        Score("perplexity", "top1_agreement", *agreement, None, None, len(found), None),
    ]


def _check_same_vocabulary(model: Model, reference: Model) -> None:
    ours, floats = (one.runner.outputs for one in (model, reference))
    if ours != floats:
        raise OptionError(
            f"{reference.about.name} has a vocabulary of {floats}, {model.about.name} of {ours}; give another "
            f"--float_model"
        )


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; the values are of windows, in which tokens are no independent draws."""
    mean = math.fsum(values) / len(values)
    return mean, stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _exponential(losses: Sequence[float]) -> tuple[float, float | None]:
    """exp of the mean; its standard error to first order."""
    mean, stderr = _mean(losses)
    value = exponential(mean)
    return value, None if stderr is None else value * stderr


def _questions(pair: Pair, loaded: dict[str, Any], asked: harness.Asked, watch: Watcher) -> list[Score]:
    answered = harness.answer(loaded, asked, pair.model, "answers", watch)
    beside = [None] * len(answered)
    if pair.reference is not None:
        beside = harness.answer(loaded, asked, pair.reference, "answers of the float model", watch)
    return [
        Score(
            ours.task,
            ours.metric,
            ours.value,
            ours.stderr,
            floats and floats.value,
            floats and floats.stderr,
            ours.questions,
            ours.shots,
        )
        for ours, floats in zip(answered, beside, strict=True)
    ]
