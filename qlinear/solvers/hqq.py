"""Half-quadratic quantization on integer zero points, beside a search of scale and zero point.

HQQ (Badri & Shaji, 2023) keeps the min-to-max scale and moves the zero point: it alternates between splitting the
error by the shrinkage operator of the l_p norm, p = 0.7, and the zero point that then fits best. It needs no text.
Its zero point is a float; ours has to be an integer, which loses part of the gain, so each group takes whichever
errs less, this or the searched range.
"""

import torch
from torch import Tensor

from qlinear.grid import Grid, GridWeight
from qlinear.solvers.ranges import diagonal_blocks, group_errors, search_ranges

NORM = 0.7
BETA, BETA_GROWTH = 10.0, 1.01
STEPS = 20


def hqq(weight: Tensor, grid: Grid, gram: Tensor | None = None) -> GridWeight:
    """Nearest codes for `weight` `(N, K)`, each group on the better of the two grids; better by `gram` if given.

    On a symmetric grid, where no zero point moves, on the searched range.
    """
    weight = weight.float()
    scales, zeros = search_ranges(weight, grid, gram)
    if grid.symmetric:
        return grid.quantize(weight, scales, zeros)
    blocks = None if gram is None else diagonal_blocks(gram, grid.group_size)

    def errors(scales: Tensor, zeros: Tensor) -> Tensor:
        return group_errors(grid.quantize(weight, scales, zeros).dequantize() - weight, blocks, grid.group_size)

    shifted_scales, shifted_zeros = half_quadratic(weight, grid)
    shifted_wins = errors(shifted_scales, shifted_zeros) < errors(scales, zeros)
    scales = torch.where(shifted_wins, shifted_scales, scales)
    zeros = torch.where(shifted_wins, shifted_zeros, zeros)
    return grid.quantize(weight, scales, zeros)


def half_quadratic(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The min-to-max scales and HQQ's zero points, rounded and within the codes: `(N, K / group_size)` each."""
    scales, zeros = grid.fit(weight)
    groups = weight.float().view(*scales.shape, grid.group_size)
    scale = scales.float().unsqueeze(-1)
    zero = zeros.float().unsqueeze(-1)
    beta, best_error = BETA, torch.inf
    for _ in range(STEPS):
        codes = (groups / scale + zero).round_().clamp_(0, grid.levels)
        error = groups - (codes - zero) * scale
        mean_error = float(error.abs().mean(0).mean())
        if mean_error >= best_error:
            break
        best_error, best_zero = mean_error, zero
        sparse = _shrink(error, beta)
        zero = (codes - (groups - sparse) / scale).mean(-1, keepdim=True)
        beta *= BETA_GROWTH
    return scales, best_zero.squeeze(-1).round().clamp(0, grid.levels).to(torch.uint8)


def _shrink(x: Tensor, beta: float) -> Tensor:
    """The generalized soft threshold of the l_p norm: what is left of x where it stands out."""
    magnitude = x.abs()
    return x.sign() * (magnitude - magnitude.clamp(min=1e-8).pow(NORM - 1) / beta).clamp_(min=0)
