"""The best scale and zero point of every group, searched: narrower ranges than min to max, zeros beside the obvious.

A group's error is `e^T G_gg e`, its own part of the squared output error, with `G_gg` the group's block of the Gram
matrix of the inputs; without a Gram matrix it is `e^T e`.
"""

import torch
from torch import Tensor

from qlinear.grid import Grid

# Ranges tried, as shares of the full one; zero points tried, as steps from the one the range asks for.
SHARES = tuple(1 - step / 20 for step in range(1, 11))
ZERO_STEPS = (-1, 1)

# Rows searched at a time hold at most this many weights: the temporaries stay in a core's own cache.
CHUNK_WEIGHTS = 2**17


def search_ranges(weight: Tensor, grid: Grid, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales `(N, K / group_size)` bfloat16 and zeros (uint8) under which nearest codes err least, group by group.

    weight: `(N, K)`; gram: `(K, K)` or None. The grid of `grid.fit` is among the candidates.
    """
    blocks = None if gram is None else diagonal_blocks(gram, grid.group_size)
    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = [_search_rows(part.float(), grid, blocks) for part in weight.split(rows)]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def diagonal_blocks(gram: Tensor, group_size: int) -> Tensor:
    """The blocks of `gram` `(K, K)` along its diagonal: `(K / group_size, group_size, group_size)`."""
    return torch.stack([gram[i : i + group_size, i : i + group_size] for i in range(0, len(gram), group_size)])


def group_errors(error: Tensor, blocks: Tensor | None, group_size: int) -> Tensor:
    """`e^T G_gg e` for each row and group `(N, K / group_size)` of a weight error `(N, K)`."""
    groups = error.view(error.shape[0], -1, group_size)
    if blocks is None:
        return groups.square().sum(-1)
    groups = groups.transpose(0, 1)  # (groups, N, group_size), one matrix product a group
    return (torch.bmm(groups, blocks) * groups).sum(-1).t()


def _search_rows(weight: Tensor, grid: Grid, blocks: Tensor | None) -> tuple[Tensor, Tensor]:
    """First the share, with the zero point of the full range: both its ends are drawn in. Then the zero point."""
    full, zeros = grid.fit(weight)
    scales, best_zeros = full, zeros
    least = _errors(weight, scales, zeros, grid, blocks)
    for share in SHARES:
        narrowed = (full.float() * share).to(torch.bfloat16)
        errors = _errors(weight, narrowed, zeros, grid, blocks)
        scales = torch.where(errors < least, narrowed, scales)
        least = torch.minimum(errors, least)
    for step in () if grid.symmetric else ZERO_STEPS:
        moved = (zeros.int() + step).clamp(0, grid.levels).to(torch.uint8)
        errors = _errors(weight, scales, moved, grid, blocks)
        best_zeros = torch.where(errors < least, moved, best_zeros)
        least = torch.minimum(errors, least)
    return scales, best_zeros


def _errors(weight: Tensor, scales: Tensor, zeros: Tensor, grid: Grid, blocks: Tensor | None) -> Tensor:
    error = grid.quantize(weight, scales, zeros).dequantize().sub_(weight)
    return group_errors(error, blocks, grid.group_size)
