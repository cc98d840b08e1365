"""Distillation: the scales of all linears moved together, until the quantized model predicts what the float one does.

Codes and zero points stand still. On samples of the calibration text, each seen once where there is enough of it, the
Kullback-Leibler divergence of the model's predictions from the float model's is taken back through the whole model to
every scale: the end-to-end phase of EfficientQAT (Chen et al., arXiv 2407.11062, section 3.3), with the float model for
a teacher as in mlx-lm's DWQ. What is stored is of the same form and size as before.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from checkpoints.formats.compressed_tensors import grid_weight, weight_parts
from checkpoints.formats.stored import BIAS
from qlinear.errors import CalibrationError, OptionError
from qlinear.grid import GridWeight
from qlinear.process import available_bytes
from qlinear.progress import Watcher, silent, steps
from qlinear.sizes import GROUP_SIZES
from quantization.fitted import FittedLinear, FittedScales, FixedLinear
from quantization.learned import BETAS, HELD_SHARE, MOST_HELD, TINY, draw_batches
from quantization.plan import Job
from quantization.precision import product_dtype
from quantization.recipe import Recipe
from quantization.streams import Streams, digest, first_inputs, read_tokens
from quantization.student import Student
from quantization.texts.samples import SELF
from quantization.unit import Distilled, full_name
from scales.calls import forwards
from scales.observe import run_block
from scales.ranks import ALONE

TOKENS = 1024  # a step looks at
CHECK_STEPS = 20  # between two looks at the samples held back
# The share of itself that the first step moves a 3-bit scale by; of 4 bits, whose places are twice as dense, half of
# that. Evenly less towards the last.
RATE = 0.003


@dataclass(frozen=True)
class Lesson:
    """Text to learn from.

    tokens: `(samples, seqlen)` int64; meta: where it is from; held: how many of the samples, the last ones, are held
    back. Of a few samples none is: all are used for both.
    """

    tokens: Tensor
    meta: dict
    held: int

    @property
    def sha256(self) -> str:
        return digest(self.tokens)[:16]

    def split(self) -> tuple[list[int], list[int]]:
        """Which samples are learned from and which are held back."""
        count = len(self.tokens)
        learned = list(range(count - self.held))
        return learned, list(range(count - self.held, count)) if self.held else learned


def open_lesson(job: Job, streams: Streams | None) -> Lesson:
    """As much text as the steps take and what is held back, or as much as there is. Raises as `open_streams` does.

    Held back is what is drawn last, and after all that the scales and the solver saw: they would do better on that
    than on other text. streams: of that; None where they saw none. Of what the model writes itself, the same samples
    are taken again.
    """
    recipe = job.recipe
    steps_take = recipe.distill * _samples_a_step(recipe)
    if streams is not None and recipe.calib_data == SELF:
        tokens, meta = streams.tokens, streams.meta
    else:
        seen = recipe.n_samples if streams is not None else 0
        wanted = replace(recipe, n_samples=max(steps_take, seen) + MOST_HELD)
        tokens, meta = read_tokens(replace(job, recipe=wanted, watch=silent, ranks=ALONE), as_drawn=True)
    held = min(len(tokens) // HELD_SHARE, MOST_HELD)
    learned = min(steps_take, len(tokens) - held)
    tokens = torch.cat([tokens[:learned], tokens[len(tokens) - held :]])
    return Lesson(tokens, meta | {"samples_drawn": len(tokens)}, held)


def _samples_a_step(recipe: Recipe) -> int:
    return -(-TOKENS // recipe.seqlen)


def taught(job: Job, lesson: Lesson) -> Student:
    """A student beside what the float model's blocks, one at a time in memory, make of the text.

    It is the leading rank's alone: a step is too short to be shared.
    """
    source = job.source
    first, calls = first_inputs(replace(job, ranks=ALONE), lesson.tokens)
    hidden = first
    for unit, anatomy, call in zip(job.plan.units, job.plan.anatomies, calls, strict=True):
        source.materialize(unit, torch.float32)
        linears = [source.model.get_submodule(full_name(unit, local)) for local in anatomy.linears]
        with forwards(linears, [FixedLinear(linear, product_dtype()) for linear in linears]):
            hidden = run_block(source.model.get_submodule(unit), hidden, call)
        source.release(unit)
    return Student(job, first, calls, hidden)


def open_distillation(job: Job, names: Sequence[str], stored: Mapping[str, Tensor]) -> "Distillation":
    """names: of the quantized linears; stored: what the checkpoint holds, by the names in its files."""
    weights, biases = {}, {}
    for name in names:
        base = job.source.linear_in_files(name)
        weights[name] = grid_weight(
            {part: stored[f"{base}.{part}"] for part in weight_parts(job.recipe.symmetric)}, job.grid_of(name).bits
        )
        if (bias := stored.get(f"{base}.{BIAS}")) is not None:
            biases[name] = bias
    return Distillation(job, weights, biases, product_dtype())


def stored_floats(job: Job, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the model the checkpoint holds unquantized, by the model's own names."""
    files = {name: job.source.name_in_files(name) for name in job.source.model.state_dict()}
    return {name: job.source.from_files(name, stored[file]) for name, file in files.items() if file in stored}


class Distillation:
    """The scales on their way. It can be put on record after any step, and goes on from there to the same bits.

    weights: of every quantized linear, by full name; biases: `(N,)`, by the same names, of those that have one.
    """

    def __init__(self, job: Job, weights: Mapping[str, GridWeight], biases: Mapping[str, Tensor], dtype: torch.dtype):
        """dtype: of the products."""
        self._total = job.recipe.distill
        self._size = _samples_a_step(job.recipe)
        self._scales = FittedScales(list(weights.values()))
        self._rates = torch.empty_like(self._scales.logs)
        for rate, weight in zip(self._scales.parts(self._rates), weights.values(), strict=True):
            rate.fill_(RATE * 2 ** (3 - weight.bits))
        parts = zip(
            weights.items(),
            self._scales.parts(self._scales.logs),
            self._scales.parts(self._scales.gradient),
            strict=True,
        )
        self.linears = {
            name: FittedLinear(weight, logs, gradient, biases.get(name), dtype)
            for (name, weight), logs, gradient in parts
        }
        self._best = self._scales.logs.clone()
        self._mean, self._square = (torch.zeros_like(self._best) for _ in range(2))
        self.result = Distilled(0, 0, 0.0, 0.0)

    def run(self, student: Student, lesson: Lesson, watch: Watcher, kept: Callable[[], None]) -> None:
        """All steps that are left. student: with these linears in its place; kept: called after each step."""
        learned, held = lesson.split()
        if self.result.steps == 0:
            error = _mean_divergence(student, held)
            self.result = replace(self.result, before=error, after=error)
        batches = list(draw_batches(learned, self._size, self._total))[self.result.steps :]
        for batch in steps(batches, len(batches), "steps", watch):
            with torch.enable_grad():
                for sample in batch:
                    student.divergence(sample, 1 / len(batch))
            self._move()
            if self.result.steps % CHECK_STEPS == 0 or self.result.steps == self._total:
                self._look(_mean_divergence(student, held))
            kept()

    def _move(self) -> None:
        """A step of Adam (Kingma & Ba, arXiv 1412.6980) against the gradient, which is used up."""
        done, gradient = self.result.steps, self._scales.gradient
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        mean = self._mean / (1 - BETAS[0] ** (done + 1))
        root = (self._square / (1 - BETAS[1] ** (done + 1))).sqrt_().add_(TINY)
        self._scales.logs.addcdiv_(mean.mul_(self._rates), root, value=-(1 - done / self._total))
        gradient.zero_()
        self.result = replace(self.result, steps=done + 1)

    def _look(self, error: float) -> None:
        if error < self.result.after:
            self._best.copy_(self._scales.logs)
            self.result = replace(self.result, kept=self.result.steps, after=error)

    def found(self) -> dict[str, Tensor]:
        """The scales that came out best on the samples held back, bfloat16 `(N, groups)` by full name."""
        best = [part.exp().to(torch.bfloat16) for part in self._scales.parts(self._best)]
        return dict(zip(self.linears, best, strict=True))

    def state(self) -> dict[str, Tensor]:
        """By names that `take_up` knows."""
        return {f"distill.{name}": tensor for name, tensor in self._tensors().items()}

    def take_up(self, result: dict, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier run stood: its `result`, as JSON has it. Raises for what is none."""
        self.result = Distilled(**result)
        if not 0 < self.result.steps <= self._total:
            raise ValueError(f"{self.result.steps} steps")
        for name, tensor in self._tensors().items():
            tensor.copy_(state[f"distill.{name}"])

    def _tensors(self) -> dict[str, Tensor]:
        return {"logs": self._scales.logs, "best": self._best, "mean": self._mean, "square": self._square}


@torch.no_grad()
def _mean_divergence(student: Student, samples: list[int]) -> float:
    """Raises `CalibrationError` where one of the two predicts no numbers: nothing is to be learned there."""
    mean = sum(student.divergence(sample) for sample in samples) / len(samples)
    if not math.isfinite(mean):
        raise CalibrationError("the model's predictions on the calibration text are not finite; leave `distill` out")
    return mean


def check_fits(job: Job) -> None:
    """Raise `OptionError` where the quantized model and what it is fitted with has no room in memory."""
    needed, there = bytes_needed(job), available_bytes()
    if job.recipe.distill and there is not None and needed > there:
        raise OptionError(
            f"`distill={job.recipe.distill}` holds the quantized model in memory, about {needed / 1e9:.1f} GB with all "
            f"that goes with it, and {there / 1e9:.1f} GB are free; leave it out, or give a smaller `seqlen`"
        )


def bytes_needed(job: Job) -> int:
    """About: a byte a code; scales, their gradient and what Adam remembers in float32; all else in float32; and what
    the linears of all blocks keep of a sample for the way back.
    """
    total, kept = 0, 0
    model, group_size = job.source.model, min(GROUP_SIZES) if job.recipe.mixed else job.plan.group_size
    units = zip(job.plan.units, job.plan.anatomies, strict=True)
    for name in (full_name(unit, local) for unit, known in units for local in known.linears):
        linear = model.get_submodule(name)
        weights = linear.in_features * linear.out_features
        total += weights + 20 * weights // group_size - 4 * weights
        kept += 2 * linear.in_features + 6 * linear.out_features
    floats = {id(tensor): tensor.numel() for tensor in model.parameters()}
    return total + 4 * sum(floats.values()) + job.recipe.seqlen * kept
