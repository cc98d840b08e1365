"""Token perplexity of a text, in windows that do not overlap, as llm-awq and GPTQ report it."""

import time
from dataclasses import dataclass

from awq_cli.running import ModelRequest, ModelResult, described, open_model
from awq_cli.texts import WIKITEXT, open_text
from engine.scoring import cut_windows, negative_log_likelihood, perplexity
from engine.text import begins_with_bos
from qlinear.progress import Note, Watcher, steps


@dataclass(frozen=True)
class Request(ModelRequest):
    dataset: str | None
    window: int
    n_windows: int | None
    bos: bool | None


@dataclass(frozen=True)
class Result(ModelResult):
    """tokens: how many were predicted, that is all but the first of each window; bos: whether the text's first one was
    that for the beginning of a text.
    """

    perplexity: float
    window: int
    n_windows: int
    tokens: int
    dataset: str
    bos: bool
    seconds: float


def run(request: Request, watch: Watcher) -> Result:
    source = request.dataset or "raw"
    if source in WIKITEXT:
        watch(Note(f"reading {WIKITEXT[source]} from the hub or its local copy"))
    text = open_text(source)
    model = open_model(request, watch)
    model.check_fits(request.window, "windows of `window`")
    windows = cut_windows(model.encode(text.text, request.bos), request.window, request.n_windows, text.name)
    decoder = model.decoder(request.window)
    start = time.perf_counter()
    total = sum(negative_log_likelihood(decoder, window) for window in steps(windows, len(windows), "windows", watch))
    return Result(
        **described("perplexity", request, model),
        perplexity=perplexity(total, windows),
        window=request.window,
        n_windows=len(windows),
        tokens=len(windows) * (request.window - 1),
        dataset=text.name,
        bos=begins_with_bos(model.tokenizer, windows[0]),
        seconds=time.perf_counter() - start,
    )
