"""Clip search: how far the range of each group is drawn in before it is rounded. Returns clips, changes nothing.

For every row and group the candidates `max|w| * (1 - i / 20)`, i = 0..9, are tried; the error is that of the group's
own part of the output, `e^T G_gg e` with `G_gg` the group's block of the Gram matrix, exact over all tokens.
"""

import torch
from torch import Tensor

from qlinear.solvers.ranges import diagonal_blocks, group_errors
from scales.search import CHUNK_WEIGHTS, Quantizer

N_STEPS = 20
N_SHRINKS = 10


def blocks_behind(gram: Tensor, group_size: int, scale: Tensor) -> Tensor:
    """The `diagonal_blocks` of what a scaled linear sees, x / `scale`, where `gram` is that of x."""
    scale = scale.view(-1, group_size)
    return diagonal_blocks(gram, group_size) / (scale.unsqueeze(1) * scale.unsqueeze(2))


def search_clip(weight: Tensor, blocks: Tensor, quantize: Quantizer) -> Tensor:
    """The best clip `(N, K / group_size, 1)` float32 for a weight `(N, K)` whose input has these `diagonal_blocks`."""
    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = [_search_rows(part.float(), blocks, quantize) for part in weight.split(rows)]
    return torch.cat(parts).unsqueeze(-1)


def _search_rows(weight: Tensor, blocks: Tensor, quantize: Quantizer) -> Tensor:
    groups = weight.view(weight.shape[0], -1, blocks.shape[-1])
    full = groups.abs().amax(-1)
    best = full.clone()
    best_error = torch.full_like(full, torch.inf)
    for step in range(N_SHRINKS):
        limit = full * (1 - step / N_STEPS)
        clipped = groups.clamp(-limit.unsqueeze(-1), limit.unsqueeze(-1)).view_as(weight)
        loss = group_errors(quantize(clipped) - weight, blocks, blocks.shape[-1])
        better = loss < best_error
        best = torch.where(better, limit, best)
        best_error = torch.where(better, loss, best_error)
    return best
