"""The grid's arithmetic in plain torch: what every other backend is compared with, and what runs where none fits."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlinear.backends.base import Backend
from qlinear.backends.stack import Stack, StackDecoder, Unsupported
from qlinear.grid import GridWeight
from qlinear.packing import JoinedWeight, PackedWeight

# Weights dequantized at a time: 2**21 in float32 are 8 MiB, so that they are still in cache when they are used.
BLOCK_WEIGHTS = 2**21


@dataclass(frozen=True)
class Prepared:
    weight: GridWeight
    bias: Tensor | None  # float32


class ReferenceBackend(Backend):
    """Keeps one byte a weight and dequantizes to float32 a block of rows at a time, on any torch device."""

    def __init__(self, name: str, device: str = "cpu"):
        self.name = name
        self.device = torch.device(device)

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> Prepared:
        grid = weight.unpack()
        scales = grid.scales.to(self.device, copy=True)  # unpacked, the other two are copies already
        moved = GridWeight(grid.codes.to(self.device), grid.zeros.to(self.device), scales, grid.bits)
        return Prepared(moved, None if bias is None else bias.to(self.device, torch.float32, copy=True))

    def matmul(self, x: Tensor, prepared: Prepared) -> Tensor:
        weight, bias = prepared.weight, prepared.bias
        n, k = weight.codes.shape
        inputs = x.to(torch.float32)
        y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
        rows = max(1, BLOCK_WEIGHTS // k)
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            of_part = GridWeight(weight.codes[part], weight.zeros[part], weight.scales[part], weight.bits)
            y[..., part] = F.linear(inputs, of_part.dequantize(), None if bias is None else bias[part])
        return y

    def decoder(self, stack: Stack, max_tokens: int, chunk: int, slots: int = 1) -> StackDecoder:
        raise Unsupported("the fused decoder needs the native cpu kernels, which this model does not run on")
