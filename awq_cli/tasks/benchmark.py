"""Time prompts of growing length: time to first token, then time per token."""

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from awq_cli.running import ModelRequest, ModelResult, described, open_model
from awq_cli.texts import benchmark_text
from engine.decoder import Decoder, read_last
from engine.generate import generate
from engine.model import Model
from qlinear.backends.cpu import native
from qlinear.errors import OptionError
from qlinear.process import peak_rss_bytes
from qlinear.progress import Note, Watcher, steps

if TYPE_CHECKING:
    from qlinear.backends.base import Meter

# Those of the original command.
PROMPT_LENGTHS = {
    "benchmark": (4, 8, 16, 32, 64, 128, 256),
    "benchmark_long": (512, 1024, 1536, 2048, 3000, 4096),
}
NEW_TOKENS = 11
REPEATS = 3


@dataclass(frozen=True)
class Request(ModelRequest):
    task: str
    max_new_tokens: int | None
    dataset: str | None

    @property
    def new_tokens(self) -> int:
        return self.max_new_tokens or NEW_TOKENS


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
class Timing:
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
    rows: list[Timing]
    peak_rss_bytes: int
    model_bytes: int
    latency_model: dict[str, dict] | None


def run(request: Request, watch: Watcher) -> Result:
    model = open_model(request, watch)
    text, note = benchmark_text(request.dataset)
    if note:
        watch(Note(note))
    tokens = model.encode(text.text, bos=False)
    lengths = _fitting_lengths(request, model, len(tokens), watch)
    decoder, meter = model.decoder(max(lengths) + request.new_tokens), model.meter
    list(generate(decoder, tokens[: min(lengths)], 2))  # first calls allocate and load; they are nobody's speed
    rows = [
        _time(decoder, tokens[:length], request.new_tokens, meter)
        for length in steps(lengths, len(lengths), "prompt lengths", watch)
    ]
    return Result(
        **described(request.task, request, model),
        threads=native.threads(),
        dataset=text.name,
        rows=rows,
        peak_rss_bytes=peak_rss_bytes(),
        model_bytes=model.about.model_bytes,
        latency_model=meter and {name: figure._asdict() for name, figure in meter.latency.rows()},
    )


def _fitting_lengths(request: Request, model: Model, available: int, watch: Watcher) -> list[int]:
    wanted = PROMPT_LENGTHS[request.task]
    limit = (model.max_positions or 2**31) - request.new_tokens
    fitting = [length for length in wanted if length <= min(limit, available)]
    if not fitting:
        room = f"room for {limit}" if limit > 0 else f"no room beside `max_new_tokens={request.new_tokens}`"
        raise OptionError(
            f"no prompt length of --task {request.task} fits: the text has {available} tokens, the model's context "
            f"{room}"
        )
    if len(fitting) < len(wanted):
        left_out = ", ".join(str(length) for length in wanted if length not in fitting)
        has_room = f"the model's context has room for {limit} prompt tokens, the text has {available}"
        watch(Note(f"left out prompt lengths {left_out}: {has_room}"))
    return fitting


def _time(decoder: Decoder, prompt: np.ndarray, max_new_tokens: int, meter: "Meter | None") -> Timing:
    runs = [list(generate(decoder, prompt, max_new_tokens)) for _ in range(REPEATS)]
    ttft = median(run[0].seconds for run in runs)
    later = [token.seconds for run in runs for token in run[1:]]
    step = median(later) if later else None
    return Timing(
        len(prompt),
        len(runs[0]),
        ttft * 1e3,
        len(prompt) / ttft,
        step * 1e3 if step else None,
        1 / step if step else None,
        None if meter is None else _model(decoder, prompt, meter),
    )


def _model(decoder: Decoder, prompt: np.ndarray, meter: "Meter") -> Modelled:
    """Read the prompt and one token once more, counting."""
    before = meter.counters
    read_last(decoder, prompt)
    between = meter.counters
    read_last(decoder, np.concatenate([prompt, prompt[-1:]]), known=len(prompt))
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
