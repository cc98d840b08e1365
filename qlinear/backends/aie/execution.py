"""The arithmetic of a dispatch, from the packed bytes, in the documented order of rounding.

1. Each weight is `w = bf16((q - z) * s)`, rounded to nearest even; the product before it is exact in float32.
2. Activations are bfloat16, products are exact, and a K block is summed in float32, the first one from the bias.
3. The block's sum is what the device returns: float32 on phx, bfloat16 on stx.
4. The host adds further K blocks in float32, in order, and rounds the result to bfloat16.

The device sums a block one K after another. Here a float32 matrix product of the CPU does, and only the order within
a block differs: both stay within `(K + 1) * 2**-24 * (|bias| + sum |x * w|)` of the exact sum, and agree bit for bit
wherever no partial sum needs rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.backends.aie.packing import SubVolumes, unpack
from qlinear.backends.aie.tiling import Tiling

# Rows of the weight that are widened to float32 at a time: bounds what a matmul allocates.
_WIDENED_ROWS = 4096


@dataclass(frozen=True)
class ArrayWeight:
    """A layer on the array: its packed bytes, and what they stand for, once derived.

    dequantized: `(N, K)` bfloat16; bias: `(N,)` float32. About 2.6 bytes a weight in all, 0.6 of them packed.
    """

    tiling: Tiling
    packed: SubVolumes
    dequantized: Tensor
    bias: Tensor

    @classmethod
    def dequantize(cls, packed: SubVolumes, tiling: Tiling) -> "ArrayWeight":
        """Derive from the packed bytes what `multiply` works on; `tiling` is for any number of rows."""
        weight, bias = unpack(packed, tiling)
        return cls(tiling, packed, weight.dequantize(torch.bfloat16), bias.to(torch.float32))


def multiply(x: Tensor, weight: ArrayWeight) -> Tensor:
    """`(M, K)` bfloat16 times the weight, plus the bias: `(M, N)` bfloat16."""
    tiling, wide = weight.tiling, x.to(torch.float32)
    total = torch.empty(x.shape[0], tiling.n)
    for start in range(0, tiling.n, _WIDENED_ROWS):
        rows = slice(start, min(start + _WIDENED_ROWS, tiling.n))
        initial = weight.bias[rows]
        for k in range(0, tiling.k, tiling.kernel.k):
            block = weight.dequantized[rows, k : k + tiling.kernel.k].to(torch.float32)
            summed = torch.addmm(initial, wide[:, k : k + tiling.kernel.k], block.t())
            returned = summed.to(tiling.device.result_dtype)
            # Only the first K block starts from the bias, so its result opens the host's sum.
            if k == 0:
                total[:, rows] = returned
                initial = torch.zeros_like(initial)
            else:
                total[:, rows] += returned
    return total.to(torch.bfloat16)
