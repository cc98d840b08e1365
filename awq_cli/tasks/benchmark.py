"""Time prompts of growing length: time to first token, then time per token."""

from dataclasses import dataclass
from statistics import median

import torch

from awq_cli.memory import peak_rss_bytes
from awq_cli.tasks.progress import Progress
from awq_cli.tasks.runner import ModelRequest, ModelResult, Runnable, open_runnable
from awq_cli.tasks.texts import benchmark_text, encode
from qlinear.backends.base import Meter
from qlinear.decoder import Decoder, generate
from qlinear.errors import OptionError

# Those of the original command.
PROMPT_LENGTHS = {
    "benchmark": (4, 8, 16, 32, 64, 128, 256),
    "benchmark_long": (512, 1024, 1536, 2048, 3000, 4096),
}
REPEATS = 3


@dataclass(frozen=True)
class Request(ModelRequest):
    task: str
    max_new_tokens: int
    dataset: str | None


@dataclass(frozen=True)
class Modelled:
    """What the matmuls would take on hardware that is only emulated, by its backend's model; nothing here is measured.

    The host's part (attention, norms, the cache) is left out. padding_waste: the part of the multiply-accumulates of
    a token that is spent on padding.
    """

    ttft_ms: float
    ms_per_token: float
    dispatches_per_prompt: int
    dispatches_per_token: int
    bytes_per_prompt: int
    bytes_per_token: int
    padding_waste: float


@dataclass(frozen=True)
class Row:
    """Medians over the repeats of measured time; decode figures are None where only one token is written."""

    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    prefill_tok_s: float
    ms_per_token: float | None
    decode_tok_s: float | None
    modelled: Modelled | None


@dataclass(frozen=True)
class Result(ModelResult):
    threads: int
    dataset: str
    rows: list[Row]
    peak_rss_bytes: int
    model_bytes: int
    latency_model: dict[str, dict] | None


def run(request: Request, progress: Progress) -> Result:
    runnable = open_runnable(request)
    for note in runnable.notes:
        progress.note(note)
    text, note = benchmark_text(request.dataset)
    if note:
        progress.note(note)
    tokens = encode(runnable.tokenizer, text.text)
    lengths = _fitting_lengths(request, runnable, len(tokens), progress)
    decoder = runnable.decoder(max(lengths) + request.max_new_tokens, progress)
    generate(decoder, tokens[: min(lengths)], 2)  # first calls allocate and load; they are nobody's speed
    rows = [
        _time(decoder, tokens[:length], request.max_new_tokens, runnable.meter)
        for length in progress.track(lengths, len(lengths), "prompt lengths")
    ]
    return Result(
        **runnable.described(request.task, request),
        threads=torch.get_num_threads(),
        dataset=text.name,
        rows=rows,
        peak_rss_bytes=peak_rss_bytes(),
        model_bytes=runnable.model_bytes,
        latency_model=runnable.meter and {name: figure._asdict() for name, figure in runnable.meter.latency.rows()},
    )


def _fitting_lengths(request: Request, runnable: Runnable, available: int, progress: Progress) -> list[int]:
    wanted = PROMPT_LENGTHS[request.task]
    limit = (runnable.max_positions or 2**31) - request.max_new_tokens
    fitting = [length for length in wanted if length <= min(limit, available)]
    if not fitting:
        raise OptionError(
            f"no prompt length of --task {request.task} fits: the text has {available} tokens, the model's context "
            f"room for {limit}"
        )
    if len(fitting) < len(wanted):
        left_out = ", ".join(str(length) for length in wanted if length not in fitting)
        progress.note(
            f"left out prompt lengths {left_out}: the model's context has room for {limit} prompt tokens, the text "
            f"has {available}"
        )
    return fitting


def _time(decoder: Decoder, prompt: torch.Tensor, max_new_tokens: int, meter: Meter | None) -> Row:
    runs = [generate(decoder, prompt, max_new_tokens) for _ in range(REPEATS)]
    ttft = median(run.ttft_s for run in runs)
    steps = [seconds for run in runs for seconds in run.step_s]
    step = median(steps) if steps else None
    return Row(
        len(prompt),
        len(runs[0].tokens),
        ttft * 1e3,
        len(prompt) / ttft,
        step * 1e3 if step else None,
        1 / step if step else None,
        None if meter is None else _model(decoder, prompt, meter),
    )


def _model(decoder: Decoder, prompt: torch.Tensor, meter: Meter) -> Modelled:
    """Read the prompt and one token once more, counting."""
    before = meter.counters
    decoder.prefill(prompt)
    between = meter.counters
    decoder.step(int(prompt[-1]))
    whole, token = between - before, meter.counters - between
    return Modelled(
        whole.modelled_seconds * 1e3,
        token.modelled_seconds * 1e3,
        whole.dispatches,
        token.dispatches,
        whole.bytes_moved,
        token.bytes_moved,
        token.padding_waste,
    )
