"""Weights on the grid as blocks of llama.cpp's, both ways (`block_q4_0`, `block_q4_1` in its ggml-common.h).

A block holds 32 weights of a row: a half-precision scale `d`, of Q4_1 a half-precision minimum `m` too, and 16 bytes
whose low halves are the first sixteen codes. Q4_0 stands for `d * (q - 8)`, Q4_1 for `d * q + m`.
"""

import torch
from torch import Tensor

from checkpoints.formats.stored import Rounding
from qlinear.errors import CheckpointError
from qlinear.grid import GridWeight
from qlinear.sizes import GROUP_SIZES

BLOCK = 32
Q4_0, Q4_1 = "Q4_0", "Q4_1"
BLOCK_BYTES = {Q4_0: 2 + BLOCK // 2, Q4_1: 4 + BLOCK // 2}
# The zero point of Q4_0.
MIDDLE = 8


def kind_for(bits: int, symmetric: bool) -> str:
    """Of two kinds that hold the weight, the smaller: three bits lie within 7 of any zero point, so Q4_0 holds them."""
    return Q4_0 if symmetric or bits == 3 else Q4_1


def to_blocks(weight: GridWeight, kind: str, name: str) -> Tensor:
    """`(N, K / 32 * bytes of a block)` uint8: the scale of a group is repeated in each of its blocks.

    weight: its scales in half precision; name: of the linear, for messages. Raises `CheckpointError` for a minimum
    beyond half precision.
    """
    n, k = weight.codes.shape
    scales = weight.scales
    zeros = weight.zeros.to(torch.int16)
    codes = weight.codes.view(n, zeros.shape[1], -1).to(torch.int16)
    head = [scales]
    if kind == Q4_0:
        codes = codes - zeros.unsqueeze(-1) + MIDDLE
    else:
        head.append((-scales.float() * zeros).to(torch.float16))
    if not head[-1].isfinite().all():
        raise CheckpointError(f"{name} has a zero point further down than half precision reaches")
    repeat = weight.group_size // BLOCK
    parts = [part.repeat_interleave(repeat, 1).unsqueeze(-1).view(torch.uint8) for part in head]
    codes = codes.reshape(n, k // BLOCK, 2, BLOCK // 2).to(torch.uint8)
    parts.append(codes[:, :, 0] | codes[:, :, 1] << 4)
    return torch.cat(parts, -1).view(n, -1)


def from_blocks(stored: Tensor, kind: str, shape: tuple[int, int], name: str, rounding: Rounding) -> GridWeight:
    """The weight on the grid whose blocks these are, `(N, bytes)` uint8, in the largest groups that it falls into.

    rounding: of the scales, half precision as they are stored; they may be negative, as those of Q4_0 are where the
    weight of the largest magnitude is positive. Raises `CheckpointError` where the minimum of a Q4_1 block is no whole
    multiple of its scale, or a scale is not finite: it lies on no grid of this program.
    """
    n, k = shape
    blocks = stored.view(n, k // BLOCK, BLOCK_BYTES[kind])
    codes = blocks[..., -BLOCK // 2 :]
    codes = torch.cat([codes & 15, codes >> 4], -1).view(n, k)
    d = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
    if not d.isfinite().all():
        raise CheckpointError(f"{name} holds a scale that is not finite")
    zeros = torch.full_like(d, MIDDLE, dtype=torch.uint8)
    if kind == Q4_1:
        zeros = _whole_zeros(d, blocks[..., 2:4].contiguous().view(torch.float16).squeeze(-1), name)
    per = next(size // BLOCK for size in reversed(GROUP_SIZES) if k % size == 0 and _repeats(d, zeros, size // BLOCK))
    d, zeros = d[:, ::per], zeros[:, ::per].contiguous()
    return GridWeight(codes, zeros, rounding(f"{name}: a scale", d), 4)


def _repeats(d: Tensor, zeros: Tensor, per: int) -> bool:
    """Whether every `per` blocks share scale and zero point."""
    return all(bool((part.unflatten(1, (-1, per)) == part[:, ::per].unsqueeze(-1)).all()) for part in (d, zeros))


def _whole_zeros(d: Tensor, m: Tensor, name: str) -> Tensor:
    """Zero points `-m / d` of Q4_1 blocks: integers up to 15, `m` their multiple as half precision has it."""
    safe = torch.where(d == 0, torch.ones_like(d), d).float()
    zeros = (-m.float() / safe).round().clamp(0, 15)
    off = (-(zeros * d.float())).half() != m
    if off.any():
        raise CheckpointError(
            f"{name} has minima that are no whole multiples of their scales ({float(off.float().mean()):.1%} of its "
            f"blocks), which is no grid of this program"
        )
    return zeros.to(torch.uint8)
