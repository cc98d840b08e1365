"""Token perplexity of a text, in windows that do not overlap, as llm-awq and GPTQ report it."""

import math
import time
from dataclasses import dataclass

from torch import Tensor

from awq_cli.tasks.progress import Progress
from awq_cli.tasks.runner import ModelRequest, ModelResult, open_runnable
from awq_cli.tasks.texts import WIKITEXT, encode, open_text
from qlinear.errors import OptionError


@dataclass(frozen=True)
class Request(ModelRequest):
    dataset: str | None
    window: int
    n_windows: int | None


@dataclass(frozen=True)
class Result(ModelResult):
    """tokens: how many were predicted, that is all but the first of each window."""

    perplexity: float
    window: int
    n_windows: int
    tokens: int
    dataset: str
    seconds: float


def run(request: Request, progress: Progress) -> Result:
    source = request.dataset or "raw"
    if source in WIKITEXT:
        progress.note(f"reading {WIKITEXT[source]} from the hub or its local copy")
    text = open_text(source)
    runnable = open_runnable(request)
    for note in runnable.notes:
        progress.note(note)
    runnable.check_fits(request.window, "windows of --window")
    windows = cut_windows(encode(runnable.tokenizer, text.text), request.window, request.n_windows, text.name)
    decoder = runnable.decoder(request.window, progress)
    start = time.perf_counter()
    total = 0.0
    for window in progress.track(windows, len(windows), "windows"):
        total += decoder.negative_log_likelihood(window)
    tokens = len(windows) * (request.window - 1)
    return Result(
        **runnable.described("perplexity", request),
        perplexity=math.exp(total / tokens),
        window=request.window,
        n_windows=len(windows),
        tokens=tokens,
        dataset=text.name,
        seconds=time.perf_counter() - start,
    )


def cut_windows(tokens: Tensor, window: int, n_windows: int | None, name: str) -> Tensor:
    """The first `n_windows` windows `(n_windows, window)` of a text `(length,)`, or all. Raises `OptionError`."""
    available = len(tokens) // window
    if available == 0:
        raise OptionError(f"{name} has {len(tokens)} tokens, less than one --window of {window}; use a smaller one")
    if n_windows is not None and n_windows > available:
        raise OptionError(f"--n_windows {n_windows}: {name} has only {available} windows of {window} tokens; use fewer")
    count = n_windows or available
    return tokens[: count * window].view(count, window)
