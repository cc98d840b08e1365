"""Learned rounding and ranges: all codes and scales of a block are moved together until its output errs least.

The block runs with its rounded weights, the error of its output is taken back through the rounding as if there were
none (straight-through), and each weight moves a little towards the code above or below, each scale up or down: what
AutoRound (Cheng et al., arXiv 2309.05516) and EfficientQAT (Chen et al., arXiv 2407.11062) do a block at a time. A
weight's place is counted in codes here, so that the gradient of the scales, the codes standing still, is exact. Scales
are rounded to bfloat16 before anything is dequantized with them; zero points stay as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from qlinear.grid import GridWeight
from quantization.unit import BlockErrors, BlockTask, Solution
from scales.search import substituted

STEPS = 100
TOKENS = 1024  # a step looks at

# What a step moves at first, evenly less towards the last: a weight, in codes; a scale, as a share of itself.
CODE_RATE = 0.02
SCALE_RATE = 0.01

# What Adam (Kingma & Ba, arXiv 1412.6980) remembers of the mean gradient and of the mean square, and what keeps it from
# dividing by zero.
BETAS = (0.9, 0.99)
TINY = 1e-12

# A weight starts where its float value lies, but no further from the code that it was given than this.
REACH = 0.45

# One sample in HELD_SHARE, at most MOST_HELD, is not learned from: every CHECK_STEPS they tell how good the block is.
HELD_SHARE = 8
MOST_HELD = 8
CHECK_STEPS = 20


def learn_block(task: BlockTask, start: Solution) -> Solution:
    """The best of what was passed on the way from `start`, which is itself among it, by the samples held back.

    Takes, beside the block, five times the weights of its linears in float32. Always makes the same of the same.
    """
    learned, held = split_samples(len(task.inputs))
    linears = list(task.unit.linears.values())
    grids = [LearnedGrid(linear.weight.data, start.grids[name]) for name, linear in task.unit.linears.items()]
    best = start.grids
    with substituted(linears, [grid.dequantize() for grid in best.values()]), _gradients(linears):
        before = least = mean_error(task, held)
        for step, batch in enumerate(draw_batches(learned, -(-TOKENS // task.inputs[0].shape[1]), STEPS), 1):
            for linear, grid in zip(linears, grids, strict=True):
                linear.weight.data = grid.dequantize()
            add_gradients(task, batch)
            for linear, grid in zip(linears, grids, strict=True):
                grid.move(linear.weight.grad, step)
                linear.weight.grad = None
            if step % CHECK_STEPS == 0:
                found = dict(zip(task.unit.linears, (grid.settled() for grid in grids), strict=True))
                with substituted(linears, [grid.dequantize() for grid in found.values()]):
                    error = mean_error(task, held)
                if error < least:
                    least, best = error, found
    return replace(start, grids=best, block=BlockErrors(before, least))


def split_samples(count: int) -> tuple[list[int], list[int]]:
    """Which samples are learned from and which are held back, evenly spaced; of a few, all are used for both."""
    held = min(count // HELD_SHARE, MOST_HELD)
    if held == 0:
        return list(range(count)), list(range(count))
    kept = [index * count // held for index in range(held)]
    return sorted(set(range(count)) - set(kept)), kept


def draw_batches(samples: Sequence[int], size: int, steps: int) -> Iterator[list[int]]:
    """`steps` times `size` of the samples: all of them in a new order, again and again."""
    generator = torch.Generator().manual_seed(0)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < size:
            waiting += [samples[index] for index in torch.randperm(len(samples), generator=generator)]
        yield waiting[:size]
        del waiting[:size]


def output_error(task: BlockTask, sample: int) -> Tensor:
    """The squared error of the block's output as a share of the squared target, in the mean of a sample's tokens.

    A share, because all that reads the residual stream reads it normalized, and because the first token and a few
    others, hundreds of times as large as the rest, would be all that counts.
    """
    block = task.unit.block
    dtype = next(block.parameters()).dtype
    target = task.targets[sample].to(dtype)
    error = (task.unit.call.at(sample)(block, task.inputs[sample].to(dtype)) - target).square().sum(-1)
    return (error / target.square().sum(-1).clamp(min=torch.finfo(dtype).tiny)).mean()


def mean_error(task: BlockTask, samples: Sequence[int]) -> float:
    with torch.no_grad():
        return sum(float(output_error(task, sample)) for sample in samples) / len(samples)


def add_gradients(task: BlockTask, samples: Sequence[int]) -> None:
    """The gradient of the mean error, left on the weights; one sample at a time, for the memory's sake."""
    for sample in samples:
        (output_error(task, sample) / len(samples)).backward()


@contextmanager
def _gradients(linears: Sequence[nn.Linear]) -> Iterator[None]:
    """The weights of the linears ask for gradients inside the `with`."""
    asked = [linear.weight.requires_grad for linear in linears]
    try:
        for linear in linears:
            linear.weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for linear, before in zip(linears, asked, strict=True):
            linear.weight.requires_grad_(before)
            linear.weight.grad = None


class LearnedGrid:
    """One linear's grid on its way.

    places: of each weight, float32 `(N, groups, group_size)`, in codes: its code is the nearest one;
    logs: the logarithm of each scale, float32 `(N, groups)`.
    """

    def __init__(self, weight: Tensor, start: GridWeight):
        """weight: float `(N, K)`, and where `start` put it."""
        self.start, self.levels = start, 2**start.bits - 1
        self.zeros = start.zeros.float().unsqueeze(-1)
        codes = start.codes.float().view(*start.scales.shape, -1)
        exact = weight.float().view_as(codes) / start.scales.float().unsqueeze(-1) + self.zeros
        self.places = torch.clamp(exact, codes - REACH, codes + REACH)
        self.logs = start.scales.float().log()
        groups = [dict(params=[self.places], lr=CODE_RATE), dict(params=[self.logs], lr=SCALE_RATE)]
        self._adam = torch.optim.Adam(groups, betas=BETAS, eps=TINY, fused=True)

    def codes(self) -> Tensor:
        return self.places.round().clamp_(0, self.levels)

    def scales(self) -> Tensor:
        return self.logs.exp().to(torch.bfloat16)

    def settled(self) -> GridWeight:
        codes = self.codes().view(self.start.codes.shape).to(torch.uint8)
        return GridWeight(codes, self.start.zeros, self.scales(), self.start.bits)

    def dequantize(self) -> Tensor:
        """The weight `(N, K)` as it now is, float32."""
        weight = self.codes().sub_(self.zeros).mul_(self.scales().float().unsqueeze(-1))
        return weight.view(self.start.codes.shape)

    def move(self, gradient: Tensor, step: int) -> None:
        """Against the gradient `(N, K)` of the error by the dequantized weight, in step 1, 2, ..., STEPS."""
        gradient = gradient.view_as(self.places)
        scales = self.scales().float()
        self.logs.grad = (self.codes().sub_(self.zeros) * gradient).sum(-1).mul_(scales)
        self.places.grad = gradient * scales.unsqueeze(-1)
        for group, rate in zip(self._adam.param_groups, (CODE_RATE, SCALE_RATE), strict=True):
            group["lr"] = rate * (1 - (step - 1) / STEPS)
        self._adam.step()
        self._adam.zero_grad()
        self.places.clamp_(-REACH, self.levels + REACH)
