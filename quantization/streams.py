"""The calibration text on its way through the model: cut into samples, handed from block to block."""

import hashlib
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.modules import first_position
from engine.text import beginning, begins_with_bos, check_rows
from qlinear.errors import OptionError
from qlinear.progress import Note
from quantization.around import around
from quantization.plan import Job
from quantization.solve import run_rounded
from quantization.texts.own import ordinary_tokens, self_samples
from quantization.texts.samples import HUB, SELF, read_text, token_blocks
from quantization.unit import BlockTask, Solution, Unit
from scales.calls import Call, record_calls
from scales.experts import feed_starved
from scales.observe import Held, Observation, observe_block, observe_head, observe_inputs, run_block
from scales.statistics import InputStatistics

# Samples on which the search confirms its candidates and compares a block with its plainly rounded self.
N_CONFIRM_SAMPLES = 4

# The name under which the tokens are kept for a run that goes on after this one.
TOKENS = "calibration.tokens"


@dataclass
class Streams:
    """Where the samples stand: at the input of one block. Hidden states are `(1, seqlen, hidden)` bfloat16 a sample.

    meta: what text it was and how it was cut, for the records; tokens: `(samples, seqlen)` int64; calls: how each block
    is called, for all samples;
    floats: what the float model makes of this rank's samples; rounded: what the blocks quantized so far make of them;
    None where nobody asks for it, and at least one of them is asked for; forward_seconds: what the float32 forward
    passes of the float model alone have taken.
    """

    meta: dict
    job: Job
    tokens: Tensor
    calls: list[Call]
    floats: list[Tensor] | None
    rounded: list[Tensor] | None
    forward_seconds: float = 0.0

    def observe(self, unit: Unit, watched: tuple[str, ...]) -> Observation:
        """Run a unit, float as it is, on what it is going to see, and step over it on the float side."""
        held = self._held(self.floats if self.rounded is None else self.rounded)
        seen = observe_block(unit.block, unit.linears, watched, held, unit.call, N_CONFIRM_SAMPLES)
        feed_starved(seen.statistics, unit.widths, held.tokens)
        self.forward_seconds += seen.forward_seconds
        if self.rounded is None:
            self.floats = seen.outputs
            return seen
        seen.outputs.clear()  # the next block is going to see those of this one quantized
        self.pass_over(unit)
        return seen

    def observe_inputs(self, unit: Unit) -> Observation | None:
        """What the linears of a unit are going to see on the quantized side; None if there is none."""
        if self.rounded is None:
            return None
        held = self._held(self.rounded)
        statistics = observe_inputs(unit.block, unit.linears, held, self._mine(unit.call))
        feed_starved(statistics, unit.widths, held.tokens)
        return Observation(statistics)

    def _held(self, hidden: list[Tensor]) -> Held:
        return Held(hidden, len(self.tokens), self.job.ranks)

    def _mine(self, call: Call) -> Call:
        return call.of(self.job.ranks.mine(len(self.tokens)))

    def pass_over(self, unit: Unit) -> None:
        """Step over a unit, float as it is, on the float side without looking, if there is a float side."""
        if self.floats is None:
            return
        start = time.perf_counter()
        self.floats = run_block(unit.block, self.floats, self._mine(unit.call))
        self.forward_seconds += time.perf_counter() - start

    def task(self, unit: Unit) -> BlockTask | None:
        """What a solver works on, once the float side is past the unit; None where it is to read no text."""
        if self.rounded is None:
            return None
        return BlockTask(replace(unit, call=self._mine(unit.call)), self._held(self.rounded), self.floats)

    def step(self, task: BlockTask, solution: Solution) -> None:
        """Step over the unit on the quantized side too."""
        self.rounded = run_rounded(task, solution)

    def state(self) -> dict[str, Tensor]:
        """Where all ranks' samples stand, by names that `take_up` knows; for the leading rank only."""
        found, ranks = {}, self.job.ranks
        for side, mine in (("hidden", self.floats), ("rounded", self.rounded)):
            for turn in range(ranks.turns(len(self.tokens)) if mine else 0):
                parts = ranks.swap(mine[turn] if turn < len(mine) else None)
                if ranks.leads:
                    first = turn * ranks.size
                    found |= {f"{side}.{first + i:06}": x for i, x in enumerate(parts) if x is not None}
        return found

    def take_up(self, state: dict[str, Tensor], forward_seconds: float) -> None:
        """Stand where the `state` of an earlier run stood. Raises `ValueError` for one that is of other samples."""
        (like,) = {x.shape for side in (self.floats, self.rounded) for x in side or ()}
        mine = self.job.ranks.mine(len(self.tokens))

        def side(name: str, wanted: bool) -> list[Tensor] | None:
            samples = [state[key] for key in sorted(state) if key.startswith(name)]
            right = all(x.shape == like and x.dtype == torch.bfloat16 for x in samples)
            if wanted and not (right and len(samples) in (0, len(self.tokens))):
                raise ValueError(f"the samples are not {len(self.tokens)} of {tuple(like)}")
            return [samples[index] for index in mine if samples] if wanted else None

        self.floats = side("hidden", self.floats is not None)
        self.rounded = side("rounded", self.rounded is not None)
        self.forward_seconds = forward_seconds

    def let_go(self) -> None:
        """All blocks and the head are behind: nobody looks at the samples any more."""
        self.floats = self.rounded = None

    def head_statistics(self) -> InputStatistics | None:
        """What the output head sees in the model quantized so far, once all units are behind; None without text."""
        if self.rounded is None:
            return None
        source, units = self.job.source, self.job.plan.units
        blocks = [source.model.get_submodule(unit) for unit in units]
        head = source.model.get_output_embeddings()
        with around(source, units):
            return observe_head(source.model, head, blocks, self.calls[0], self._held(self.rounded))


@dataclass(frozen=True)
class Sides:
    """Which of the two streams are wanted."""

    floats: bool
    rounded: bool


def open_streams(job: Job, sides: Sides, kept: Tensor | None) -> Streams:
    """kept: the tokens of an earlier run, to be taken up.

    Raises `CalibrationError` where there is no text, `OptionError` where samples are longer than the context.
    """
    tokens, meta = read_tokens(job, kept)
    first, calls = first_inputs(job, tokens)
    floats, rounded = (first if wanted else None for wanted in (sides.floats, sides.rounded))
    return Streams(meta, job, tokens, calls, floats, rounded)


def read_tokens(job: Job, kept: Tensor | None = None, as_drawn: bool = False) -> tuple[Tensor, dict]:
    """As many samples as the recipe asks for, or as there are, `(samples, seqlen)` int64, and what they were made of.

    kept: those of an earlier run, to be taken up; as_drawn: as for `token_blocks`. Raises as `open_streams` does.
    """
    recipe = job.recipe
    known = getattr(job.source.config.get_text_config(), "max_position_embeddings", None)
    context = recipe.seqlen if known is None else known - first_position(job.source.model)
    if recipe.seqlen > context:
        raise OptionError(f"`seqlen={recipe.seqlen}` is more than the model's context of {context} tokens")
    tokens, text = job.ranks.told(tokens_of(job, kept, as_drawn) if job.ranks.leads else None)
    if len(tokens) < job.ranks.size:
        raise OptionError(f"{job.ranks.size} ranks have {len(tokens)} samples to share; start no more than that")
    check_rows(job.source.tokenizer, tokens, len(job.source.model.get_input_embeddings().weight))
    drawn = {"n_samples": recipe.n_samples, "samples_drawn": len(tokens), "seqlen": recipe.seqlen, "seed": recipe.seed}
    return tokens, {**text, **drawn, "tokens": digest(tokens)}


def digest(tokens: Tensor) -> str:
    """sha256 (hex) of tokens, whatever text, tokenizer and template they come from."""
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def tokens_of(job: Job, kept: Tensor | None = None, as_drawn: bool = False) -> tuple[Tensor, dict]:
    """Token blocks `(samples, seqlen)` of a text or of the model's own, and what they were made of."""
    recipe = job.recipe
    if recipe.calib_data == SELF:
        tokens = _own_tokens(job) if kept is None else kept
        return tokens, {"source": SELF, "sha256": None, "bos": begins_with_bos(job.source.tokenizer, tokens[0])}
    if recipe.calib_data in HUB:
        job.watch(Note(f"reading calibration text {recipe.calib_data} from the hub"))
    text = read_text(recipe.calib_data)
    tokens, bos = token_blocks(job.source.tokenizer, text, recipe, as_drawn, lambda what: job.watch(Note(what)))
    if len(tokens) < recipe.n_samples:
        blocks = f"{len(tokens)} blocks of {recipe.seqlen} tokens"
        job.watch(Note(f"calibration text {text.name} has {blocks}; all are used"))
    return tokens, {"source": text.name, "sha256": text.sha256, "bos": bos}


def _own_tokens(job: Job) -> Tensor:
    """The one time that quantizing holds the whole float model."""
    source, recipe = job.source, job.recipe
    size = f"{recipe.n_samples} x {recipe.seqlen} tokens"
    job.watch(Note(f"{source.name} writes its calibration text itself: {size}"))
    model = source.load()
    ordinary = ordinary_tokens(source.tokenizer, model.config.get_text_config().vocab_size)
    bos = beginning(source.tokenizer, recipe.bos)
    tokens = self_samples(model, ordinary, recipe.n_samples, recipe.seqlen, recipe.seed, bos)
    source.release()
    return tokens


def first_inputs(job: Job, tokens: Tensor) -> tuple[list[Tensor], list[Call]]:
    """What the first block sees; the weights this takes are let go of again."""
    source, units = job.source, job.plan.units
    source.materialize(units[0], torch.float32)
    ranks, count = job.ranks, len(tokens)
    seen = sorted({*ranks.mine(count), *range(min(count, N_CONFIRM_SAMPLES))})  # the first of all, too
    with around(source, units):
        blocks = [source.model.get_submodule(unit) for unit in units]
        hidden, calls = record_calls(source.model, blocks, tokens[seen])
    source.release(units[0])
    places = {sample: place for place, sample in enumerate(seen)}
    mine = [hidden[places[sample]].to(torch.bfloat16) for sample in ranks.mine(count)]
    # half the memory, and none of float16's overflow
    return mine, [call.of([places.get(sample, 0) for sample in range(count)]) for call in calls]
