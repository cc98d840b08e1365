"""One model type through the product and beside transformers, step by step, each with a time limit."""

import json
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.models.exact import open_exact
from benchmarks.models.overrides import NO_MODEL
from benchmarks.models.record import Blocks, Check, Left, Outcome, Record, Way
from benchmarks.models.reference import Reference, generated, open_reference, whole_logits
from benchmarks.models.tiny import Row, random_tokens, save_tiny
from engine.decoder import Decoder, read_all
from engine.fused import FusedDecoder
from engine.generate import generate
from engine.modules import ModuleDecoder, check_causal
from qlinear.errors import AwqError
from qlinear.progress import Note, Step
from run_awq import Recipe, load, quantize

PROMPT, NEW = 24, 24  # together past the windows of the tiny models
ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
# Where transformers does not run a model in bfloat16: more than that costs nine of ten others.
USUAL_NOISE = 0.02


_PARTS = (".weight_packed", ".weight_scale", ".weight_zero_point")
# From the least to what outweighs all else.
_RANK = [Outcome.WORKS, Outcome.UNPROVEN, Outcome.REFUSED, Outcome.FAULT, Outcome.WRONG]


class Stopped(Exception):
    """A step failed that all others need: why is in the record."""


def look(name: str) -> Record:
    """A row by its name, in a folder of its own, where nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        return examine(Row.named(name), Path(folder))


def examine(row: Row, folder: Path, awqs: tuple[str, ...] = ("run", "none")) -> Record:
    """All there is to know of a row; nothing is raised for what a model or the product does."""
    begun = time.perf_counter()
    record = Record(row.name, unbuilt=None if row.wrapper else NO_MODEL.get(row.model_type))
    if record.unbuilt is None:
        try:
            with limited(LIMIT_S):
                text = save_tiny(row, folder / "float")
        except Exception as error:
            record.unbuilt = f"{one_line(error)} ({place(error)})"
    if record.unbuilt is None:
        record.ways = tuple(_way(folder, text, awq) for awq in awqs)
    record.seconds = time.perf_counter() - begun
    return record


def _way(folder: Path, text: Path, awq: str) -> Way:
    way, begun = Way(awq), time.perf_counter()
    out = folder / f"quantized-{awq}"
    scales = None if awq == "none" else str(folder / "scales.pt")
    recipe = Recipe(group_size=32, awq=awq, scales=scales, calib_data=str(text), n_samples=4, seqlen=32)
    try:
        with step(way, "quantize"):
            result = quantize(folder / "float", out, recipe)
        _inventory(way, out, result)
        _compare(way, out)
    except Stopped:
        pass
    if way.wrong_checks():
        way.outcome = Outcome.WRONG
    way.seconds = time.perf_counter() - begun
    return way


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` after so much processor time, which other processes on the machine do not count in."""

    def stop(*_):
        raise TimeoutError(f"not done in {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def step(way: Way, name: str, failed: Outcome = Outcome.FAULT, needed: bool = True) -> Iterator[None]:
    """failed: what an exception that is no `AwqError` means; needed: whether nothing goes on without it."""
    try:
        with limited(LIMIT_S):
            yield
        return
    except Exception as error:
        refused = isinstance(error, AwqError)
        outcome = Outcome.REFUSED if refused else failed
        text, where = (str(error), name) if refused else (one_line(error), f"{name}: {place(error)}")
    if _RANK.index(outcome) > _RANK.index(way.outcome):
        way.outcome, way.error, way.where = outcome, text, where
    if needed:
        raise Stopped


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def place(error: Exception) -> str:
    """The last line of this project's that an exception came through, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    named = [f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}" for frame in own[-1:]]
    last = frames[-1]
    if last not in own:
        named.append(f"{Path(last.filename).name}:{last.lineno}")
    return ", ".join(named)


def _inventory(way: Way, directory: Path, result) -> None:
    """Which linears were quantized and which matrices were not, by the files; and what quantizing says of both."""
    from safetensors import safe_open

    packed, floats = [], []
    vocabularies = _vocabularies(json.loads((directory / "config.json").read_text()))
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():
                shape = stored.get_slice(name).get_shape()
                if name.endswith(".weight_shape"):
                    packed.append(name.removesuffix(".weight_shape"))
                elif len(shape) > 1 and not vocabularies & set(shape) and not name.endswith(_PARTS):
                    floats.append(name)
    way.quantized, way.left_float = tuple(sorted(packed)), tuple(sorted(floats))
    way.blocks = tuple(
        Blocks(len(kind.blocks), kind.found, len(kind.edges), tuple(kind.uncovered)) for kind in result.kinds
    )
    way.kept = tuple(Left(entry.name, entry.reason) for entry in result.kept)
    way.kept_share = result.kept_share


def _vocabularies(config: dict) -> set[int]:
    inner = [_vocabularies(value) for value in config.values() if isinstance(value, dict)]
    return {config[name] for name in config if name.startswith("vocab_size")}.union(*inner)


def _compare(way: Way, directory: Path) -> None:
    prompt = random_tokens(PROMPT, seed=5)
    with step(way, "reference"):
        reference = open_reference(directory, torch.float32)
        rounded = open_reference(directory, torch.bfloat16)
        way.strange = reference.strange
    texts = _Texts(way, reference, rounded, prompt)
    with step(way, "open in float32"):
        exact = open_exact(directory)
        check_causal(exact)
    for name, static in (("float32, growing cache", False), ("float32, static cache", True)):
        with step(way, f"decode, {name}", needed=False):
            texts.check_decode(name, ModuleDecoder(exact, PROMPT + NEW, static), exact=True)
    with step(way, "score, float32", needed=False):
        texts.check_score(
            "score, float32",
            torch.from_numpy(read_all(ModuleDecoder(exact, PROMPT + NEW, False), texts.whole.numpy())),
            exact=True,
        )
    del exact
    _compare_product(way, directory, texts)


def _compare_product(way: Way, directory: Path, texts: "_Texts") -> None:
    """As the command runs it: layer by layer, and with the whole stack at once where that is known."""
    for name, flash in (("modules", False), ("flash attention", True)):
        notes: list[str] = []
        with step(way, f"load, {name}"):
            model = load(directory, flash_attention=flash, progress=partial(_note, notes))
            decoder = model.decoder(PROMPT + NEW)
        way.fused = isinstance(decoder, FusedDecoder)
        way.why_not_fused = None if way.fused else " ".join(notes)
        with step(way, f"decode, {name}", needed=False):
            texts.check_decode(name, decoder, exact=False)
        with step(way, f"score, {name}", needed=False):
            logits = model.logits(texts.whole)
            texts.check_score(f"score, {name}", logits, exact=False)
            if flash and not torch.equal(logits, load(directory, flash_attention=True).logits(texts.whole)):
                way.notes += ("loaded again, it gives other logits",)


def _note(notes: list[str], event: Note | Step) -> None:
    if isinstance(event, Note):
        notes.append(event.text)


class _Texts:
    """A prompt, what transformers goes on with, and its logits: of every step of its own `generate`, and of the whole
    text at once, in float32 and in bfloat16."""

    def __init__(self, way: Way, reference: Reference, rounded: Reference, prompt: Tensor):
        self.way, self.prompt = way, prompt
        self.experts = any("expert" in type(module).__name__.lower() for module in reference.model.modules())
        with step(way, "transformers", failed=Outcome.UNPROVEN):
            self.tokens, self.decoded = generated(reference.model, prompt, NEW)
            self.whole = torch.cat([prompt, self.tokens])
            self.scored = whole_logits(reference.model, self.whole)
        self.decoded_rounded = self.scored_rounded = None
        try:
            self.scored_rounded = whole_logits(rounded.model, self.whole)
            _, self.decoded_rounded = generated(rounded.model, prompt, NEW, forced=self.tokens)
        except Exception as error:
            way.notes += (f"transformers does not run it in bfloat16: {one_line(error)}",)
        apart = errors(self.decoded, self.scored[PROMPT - 1 : -1]).max().item()
        if not apart < 1e-3:
            way.notes += (f"transformers' own generate is {apart:.2g} off its own forward of the whole text",)

    def check_decode(self, name: str, decoder: Decoder, exact: bool) -> None:
        """Have the decoder write what transformers wrote, by the product's own loop."""
        seen: list[Tensor] = []

        def forced(logits: np.ndarray) -> int:
            seen.append(torch.from_numpy(logits.copy()))
            return int(self.tokens[len(seen) - 1])

        for _ in generate(decoder, self.prompt.numpy(), NEW, choose=forced):
            pass
        self._check(f"decode, {name}", torch.stack(seen), (self.decoded, self.decoded_rounded), exact)

    def check_score(self, name: str, logits: Tensor, exact: bool) -> None:
        self._check(name, logits, (self.scored, self.scored_rounded), exact)

    def _check(self, name: str, found: Tensor, wanted: tuple[Tensor, Tensor | None], exact: bool) -> None:
        off = errors(found, wanted[0])
        noise = USUAL_NOISE if wanted[1] is None else errors(wanted[1], wanted[0]).median().item()
        self.way.checks += (Check.of(name, exact, off.tolist(), 0.0 if exact else noise, self.experts),)


def errors(found: Tensor, wanted: Tensor) -> Tensor:
    """Of each position `(length,)`: the distance over how far the wanted logits lie from their mean; nan if not
    finite."""
    size = min(found.shape[-1], wanted.shape[-1])
    found, wanted = found[:, :size].double(), wanted[:, :size].double()
    spread = (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
    return (found - wanted).norm(dim=-1) / spread
