"""How much of the float model is left: perplexity, divergence and question answering, beside the float model's own."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import stdev

from awq_cli.tasks import choices
from awq_cli.tasks.eval_data import TEXT
from awq_cli.tasks.perplexity import cut_windows
from awq_cli.tasks.progress import Progress
from awq_cli.tasks.runner import ModelRequest, ModelResult, Runnable, open_float, open_runnable
from awq_cli.tasks.texts import WIKITEXT, encode, open_text
from qlinear.errors import OptionError
from qlinear.scoring import compare

TASKS = ("perplexity", *choices.FOLDERS)


@dataclass(frozen=True)
class Request(ModelRequest):
    tasks: str
    eval_data: str | None
    limit: int | None
    float_model: str | None
    dataset: str | None
    window: int
    n_windows: int | None


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
    """float_model: the one compared with, None if there is none; dataset, window: of the perplexity; None without."""

    float_model: str | None
    scores: list[Score]
    dataset: str | None
    window: int | None
    eval_data: str | None
    limit: int | None
    lm_eval: str | None
    seconds: float


def run(request: Request, progress: Progress) -> Result:
    start = time.perf_counter()
    tasks = _chosen(request.tasks)
    asked = [task for task in tasks if task != "perplexity"]
    if asked:
        choices.require_library(asked)
    text = _open_text(request, progress) if "perplexity" in tasks else None
    loaded = choices.load_tasks(asked, request.eval_data) if asked else {}
    runnable = open_runnable(request)
    for note in runnable.notes:
        progress.note(note)
    reference = _open_reference(request, runnable, progress)
    scores = []
    if text is not None:
        scores += _perplexity(request, runnable, reference, text, progress)
    if loaded:
        scores += _questions(request, runnable, reference, loaded, progress)
    return Result(
        **runnable.described("evaluate", request),
        float_model=reference and reference.name,
        scores=scores,
        dataset=text and text.name,
        window=request.window if text else None,
        eval_data=request.eval_data,
        limit=request.limit,
        lm_eval=version("lm-eval") if asked else None,
        seconds=time.perf_counter() - start,
    )


def _chosen(given: str) -> tuple[str, ...]:
    """The tasks of a list with commas, in the order of `TASKS`."""
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in TASKS:
            raise OptionError(f"--tasks: there is no task {name!r}; choose from {', '.join(TASKS)}")
    return tuple(task for task in TASKS if task in names)


def _open_text(request: Request, progress: Progress):
    if request.dataset is None and request.eval_data is not None:
        path = Path(request.eval_data) / TEXT
        if not path.is_file():
            raise OptionError(f"--eval_data: {path} is not there; --tasks perplexity needs it, or give --dataset FILE")
        return open_text(str(path))
    source = request.dataset or "raw"
    if source in WIKITEXT:
        progress.note(f"reading {WIKITEXT[source]} from the hub or its local copy")
    return open_text(source)


def _open_reference(request: Request, runnable: Runnable, progress: Progress) -> Runnable | None:
    """The float model to compare with: the one named, or the one that the checkpoint was made from."""
    if request.precision == "bf16" or request.float_model == "none":
        return None
    name = request.float_model or runnable.origin
    if not isinstance(name, str):
        raise OptionError(
            f"{runnable.checkpoint} does not say which float model it was made from; give --float_model NAME, or none"
        )
    # The float model does not run on the NPU, whose arithmetic is emulated on the CPU anyway.
    target = "cpu" if request.target.startswith("aie") else request.target
    at = replace(request, target=target, flash_attention=runnable.flash_attention)
    reference = open_float(name, at)
    if reference.fingerprint != runnable.fingerprint:
        progress.note(f"{name} is not the float model that {runnable.checkpoint} was made from, or has changed since")
    return reference


def _perplexity(request: Request, runnable: Runnable, reference: Runnable | None, text, progress: Progress):
    """Both models read each window, and nothing of one window is kept for the next but sums."""
    runnable.check_fits(request.window, "windows of --window")
    windows = cut_windows(encode(runnable.tokenizer, text.text), request.window, request.n_windows, text.name)
    decoder = runnable.decoder(request.window, progress)
    tracked = progress.track(windows, len(windows), "windows")
    if reference is None:
        losses = [decoder.negative_log_likelihood(window) / (request.window - 1) for window in tracked]
        return [Score("perplexity", "perplexity", *_exponential(losses), None, None, len(losses), None)]
    _check_same_vocabulary(runnable, reference)
    beside = reference.decoder(request.window, progress)
    found = [compare(decoder, beside, window) for window in tracked]
    perplexity = _exponential([one.nll for one in found])
    of_float = _exponential([one.reference_nll for one in found])
    divergence = _mean([one.divergence for one in found])
    agreement = _mean([one.agreement for one in found])
    return [
        Score("perplexity", "perplexity", *perplexity, *of_float, len(found), None),
        Score("perplexity", "kl_divergence", *divergence, None, None, len(found), None),
        Score("perplexity", "top1_agreement", *agreement, None, None, len(found), None),
    ]


def _check_same_vocabulary(runnable: Runnable, reference: Runnable) -> None:
    ours, floats = (one.model.get_output_embeddings().out_features for one in (runnable, reference))
    if ours != floats:
        raise OptionError(
            f"{reference.name} has a vocabulary of {floats}, {runnable.name} of {ours}; give another --float_model"
        )


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; the values are of windows, in which tokens are no independent draws."""
    mean = math.fsum(values) / len(values)
    return mean, stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _exponential(losses: Sequence[float]) -> tuple[float, float | None]:
    """exp of the mean; its standard error to first order."""
    mean, stderr = _mean(losses)
    return math.exp(mean), None if stderr is None else math.exp(mean) * stderr


def _questions(
    request: Request, runnable: Runnable, reference: Runnable | None, loaded: dict[str, object], progress: Progress
) -> list[Score]:
    answered = choices.answer(loaded, runnable, request.limit, progress, "answers")
    beside = [None] * len(answered)
    if reference is not None:
        beside = choices.answer(loaded, reference, request.limit, progress, "answers of the float model")
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
