"""The calibration text on its way through the model: read, cut into samples, handed from block to block."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from awq_cli.tasks.plan import Plan, unit_linears
from awq_cli.tasks.progress import Progress
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import OptionError
from scales import calibration
from scales.observe import Call, InputStatistics, Observation, observe_block, observe_head, record_calls, run_block
from scales.selftext import ordinary_tokens, self_samples
from scales.solve import run_rounded
from scales.task import BlockTask, Solution

# Samples on which the search confirms its candidates and compares a block with its plainly rounded self.
N_CONFIRM_SAMPLES = 4

# The name under which the tokens are kept for a run that goes on after this one.
TOKENS = "calibration.tokens"


@dataclass
class Calibration:
    """Where the samples stand: at the input of one block. Hidden states are `(1, seqlen, hidden)` bfloat16 a sample.

    meta: what text it was and how it was cut, for the records; tokens: `(samples, seqlen)` int64; calls: how each block
    is called;
    hidden: what the float model makes of the samples; rounded: what the blocks quantized so far make of them; either
    is empty if nobody asks; forward_seconds: what the float32 forward passes of the float model alone have taken.
    """

    meta: dict
    source: PretrainedModel
    plan: Plan
    tokens: Tensor
    calls: list[Call]
    hidden: list[Tensor]
    rounded: list[Tensor]
    forward_seconds: float = 0.0

    def observe(self, index: int, block: nn.Module, watched: tuple[str, ...]) -> Observation:
        """Run unit `index`, float as it is, on what it is going to see, and step over it on the float side."""
        linears = unit_linears(self.source.model, self.plan.units[index])
        inputs = self.rounded or self.hidden
        seen = observe_block(block, linears, watched, inputs, self.calls[index], N_CONFIRM_SAMPLES)
        self.forward_seconds += seen.forward_seconds
        if not self.rounded:
            self.hidden = seen.outputs
            return seen
        seen.outputs.clear()  # the next block is going to see those of this one quantized
        if self.hidden:
            self.pass_over(index, block)
        return seen

    def pass_over(self, index: int, block: nn.Module) -> None:
        """Step over unit `index`, float as it is, on the float side without looking."""
        start = time.perf_counter()
        self.hidden = run_block(block, self.hidden, self.calls[index])
        self.forward_seconds += time.perf_counter() - start

    def task(self, index: int, block: nn.Module) -> BlockTask:
        """What a solver works on, once the float side is past unit `index`."""
        linears = unit_linears(self.source.model, self.plan.units[index])
        return BlockTask(block, linears, self.calls[index], self.rounded, self.hidden)

    def step(self, task: BlockTask, solution: Solution) -> None:
        """Step over the unit on the quantized side too."""
        self.rounded = run_rounded(task, solution)

    def state(self) -> dict[str, Tensor]:
        """Where the samples stand, by names that `take_up` knows."""
        sides = {"hidden": self.hidden, "rounded": self.rounded}
        return {f"{side}.{index:06}": x for side, samples in sides.items() for index, x in enumerate(samples)}

    def take_up(self, state: dict[str, Tensor], forward_seconds: float) -> None:
        """Stand where the `state` of an earlier run stood."""
        self.hidden, self.rounded = (
            [state[name] for name in sorted(state) if name.startswith(side)] for side in ("hidden", "rounded")
        )
        self.forward_seconds = forward_seconds

    def let_go(self) -> None:
        """All blocks and the head are behind: nobody looks at the samples any more."""
        self.hidden = self.rounded = []

    def head_statistics(self) -> InputStatistics:
        """What the output head sees in the model quantized so far, once all units are behind."""
        around = _around_blocks(self.source, self.plan)
        for name in around:
            self.source.materialize(name, torch.float32)
        blocks = [self.source.model.get_submodule(unit) for unit in self.plan.units]
        head = self.source.model.get_output_embeddings()
        statistics = observe_head(self.source.model, head, blocks, self.calls[0], self.rounded)
        for name in around:
            self.source.release(name)
        return statistics


def open_calibration(
    request, source: PretrainedModel, plan: Plan, sides: tuple[bool, bool], progress: Progress, kept: Tensor | None
) -> Calibration:
    """sides: whether the float and the quantized one are wanted; kept: the tokens of an earlier run, to be taken up.

    Raises `CalibrationError` where there is no text, `OptionError` where samples are longer than the context.
    """
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and request.seqlen > context:
        raise OptionError(f"--seqlen {request.seqlen} is more than the model's context of {context} tokens")
    tokens, text = _tokens(request, source, progress, kept)
    meta = {
        **text,
        "n_samples": request.n_samples,
        "samples_drawn": len(tokens),
        "seqlen": request.seqlen,
        "seed": request.seed,
    }
    hidden, calls = _first_inputs(source, plan, tokens if kept is None else tokens[:1])
    return Calibration(meta, source, plan, tokens, calls, *(hidden if wanted else [] for wanted in sides))


def _tokens(request, source: PretrainedModel, progress: Progress, kept: Tensor | None) -> tuple[Tensor, dict]:
    """Token blocks `(samples, seqlen)` of a text or of the model's own, and what they were made of."""
    if request.calib_data == calibration.SELF:
        tokens = _own_tokens(request, source, progress) if kept is None else kept
        return tokens, {"source": calibration.SELF, "sha256": None}
    if request.calib_data in calibration.SOURCES and request.calib_data != "builtin":
        progress.note(f"reading calibration text {request.calib_data} from the hub")
    text = calibration.read_text(request.calib_data)
    tokens = calibration.token_blocks(source.tokenizer, text, request.n_samples, request.seqlen, request.seed)
    if len(tokens) < request.n_samples:
        progress.note(f"calibration text {text.name} has {len(tokens)} blocks of {request.seqlen} tokens; all are used")
    return tokens, {"source": text.name, "sha256": text.sha256}


def _own_tokens(request, source: PretrainedModel, progress: Progress) -> Tensor:
    """The one time that quantizing holds the whole float model."""
    progress.note(f"{source.name} writes its calibration text itself: {request.n_samples} x {request.seqlen} tokens")
    model = source.load()
    ordinary = ordinary_tokens(source.tokenizer, model.config.get_text_config().vocab_size)
    tokens = self_samples(model, ordinary, request.n_samples, request.seqlen, request.seed)
    source.release()
    return tokens


def _first_inputs(source: PretrainedModel, plan: Plan, tokens: Tensor) -> tuple[list[Tensor], list[Call]]:
    """What the first block sees; the weights this takes are let go of again."""
    around = [*_around_blocks(source, plan), plan.units[0]]
    for name in around:
        source.materialize(name, torch.float32)
    blocks = [source.model.get_submodule(unit) for unit in plan.units]
    hidden, calls = record_calls(source.model, blocks, tokens)
    for name in around:
        source.release(name)
    return [x.to(torch.bfloat16) for x in hidden], calls  # half the memory, and none of float16's overflow


def _around_blocks(source: PretrainedModel, plan: Plan) -> list[str]:
    """The modules beside the decoder blocks: embeddings, the last norm."""
    parent_name, _, blocks_name = plan.architecture.blocks.rpartition(".")
    parent = source.model.get_submodule(parent_name)
    return [f"{parent_name}.{name}" for name, _ in parent.named_children() if name != blocks_name]
