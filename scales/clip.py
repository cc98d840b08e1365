"""Clip search: how far the range of each group is drawn in before it is rounded. Returns clips, changes nothing.

For every row and group the candidates `max|w| * (1 - i / 20)`, i = 0..9, are tried; the error is that of the group's
own part of the output, `e^T G_gg e` with `G_gg` the group's block of the Gram matrix, exact over all tokens.
"""

import torch
from torch import Tensor

from scales.search import CHUNK_WEIGHTS, Quantizer

N_STEPS = 20
N_SHRINKS = 10


def diagonal_blocks(gram: Tensor, group_size: int, scale: Tensor) -> Tensor:
    """`(K / group_size, group_size, group_size)`: each group's own part of a Gram matrix `(K, K)`, of x / `scale`."""
    starts = range(0, len(gram), group_size)
    blocks = torch.stack([gram[i : i + group_size, i : i + group_size] for i in starts])
    scale = scale.view(-1, group_size)
    return blocks / (scale.unsqueeze(1) * scale.unsqueeze(2))


def search_clip(weight: Tensor, blocks: Tensor, quantize: Quantizer) -> Tensor:
    """The best clip `(N, K / group_size, 1)` float32 for a weight `(N, K)` whose input has these `diagonal_blocks`."""
    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = [_search_rows(part.float(), blocks, quantize) for part in weight.split(rows)]
    return torch.cat(parts).unsqueeze(-1)


def _search_rows(weight: Tensor, diagonal: Tensor, quantize: Quantizer) -> Tensor:
    groups = weight.view(weight.shape[0], -1, diagonal.shape[-1])
    full = groups.abs().amax(-1)
    best = full.clone()
    best_error = torch.full_like(full, torch.inf)
    for step in range(N_SHRINKS):
        limit = full * (1 - step / N_STEPS)
        clipped = groups.clamp(-limit.unsqueeze(-1), limit.unsqueeze(-1)).view_as(weight)
        error = (quantize(clipped) - weight).view_as(groups).transpose(0, 1)  # (groups, N, group_size)
        loss = (torch.bmm(error, diagonal) * error).sum(-1).t()
        better = loss < best_error
        best = torch.where(better, limit, best)
        best_error = torch.where(better, loss, best_error)
    return best
