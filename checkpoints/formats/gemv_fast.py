"""llm-awq's second arrangement, which AutoAWQ calls GEMVFast: 16-bit words of four codes, zero points times scales.

Of a linear (N, K), `qweight` is int16 `(N / 4, K)`: of each 32 codes of a row, those at (i, j, l) of (4, 4, 2) stand at
(j, i, l), then of each eight the even ones stand before the odd ones, and 64 columns of four rows follow each other,
four codes a word, the first in the lowest bits. `scales` and `qzeros` are float16 `(P, N)`, its groups padded to P, and
`qzeros` holds -zero * scale (https://github.com/mit-han-lab/llm-awq, `pack_intweight`; AutoAWQ 0.2.9, `gemv_fast.py`).
"""

import torch
from torch import Tensor

from qlinear.errors import CheckpointError

ROWS, COLUMNS, RUN = 4, 64, 32
# How far a zero point may be from a whole number: scale and product are rounded to float16 each.
TOLERANCE = 0.05


def _order() -> Tensor:
    """Which of 32 codes stands where."""
    spread = torch.arange(RUN).view(4, 4, 2).transpose(0, 1).reshape(4, 4, 2)
    return spread.transpose(1, 2).reshape(RUN)


def unpack_codes(words: Tensor) -> Tensor:
    """`(N / 4, K)` int16 words as `(N, K)` uint8 codes."""
    quarter, k = words.shape
    stored = words.contiguous().view(torch.uint8)
    nibbles = torch.stack([stored & 15, stored >> 4], dim=-1)  # a word is four of them, the lowest first
    rows = nibbles.view(quarter, k // COLUMNS, ROWS, COLUMNS).transpose(1, 2).reshape(ROWS * quarter, k // RUN, RUN)
    codes = torch.empty_like(rows)
    codes[..., _order()] = rows
    return codes.view(ROWS * quarter, k)


def zero_points(name: str, scaled: Tensor, scales: Tensor) -> Tensor:
    """uint8 zero points of `scaled` = -zero * scale. Raises `CheckpointError` where they are no codes of four bits."""
    exact = torch.where(scales == 0, 0.0, -scaled.to(torch.float32) / scales.to(torch.float32))
    zeros = exact.round()
    if (exact - zeros).abs().max() > TOLERANCE or zeros.min() < 0 or zeros.max() > 15:
        raise CheckpointError(f"{name} holds what are no scales times whole numbers of 0 to 15; it is damaged")
    return zeros.to(torch.uint8)
