"""Dense bit packing: consecutive values fill int32 words from the low bits up, across word boundaries.

This is the layout of the compressed-tensors `pack-quantized` format (version 0.18 and later), in which 32 three-bit
values fill exactly three words. Rows are padded with zero bits to whole words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.grid import GridWeight, middle


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack `(R, C)` uint8 values below `2**bits` into `(R, ceil(C * bits / 32))` int32 words."""
    rows, cols = values.shape
    words = -(-cols * bits // 32)
    padded = torch.zeros(rows, -(-cols // 32) * 32, dtype=torch.uint8, device=values.device)
    padded[:, :cols] = values
    octets = padded.view(rows, -1, 8)
    # Eight values make `bits` bytes: gather them in one int32, then keep its low bytes (little-endian).
    joined = torch.zeros(octets.shape[:2], dtype=torch.int32, device=values.device)
    for i in range(8):
        joined |= octets[..., i].to(torch.int32) << (bits * i)
    low_bytes = joined.view(torch.uint8).view(rows, -1, 4)[..., :bits].contiguous()
    return low_bytes.view(rows, -1).view(torch.int32)[:, :words].contiguous()


def unpack(words: Tensor, bits: int, cols: int) -> Tensor:
    """The `(R, cols)` uint8 values that `pack` was given."""
    rows = words.shape[0]
    octets = -(-cols // 8)
    spread = torch.zeros(rows, octets * bits, dtype=torch.uint8, device=words.device)
    # flat first: a single column counts as contiguous with any stride, and then has no view as bytes
    stored = words.reshape(-1).view(torch.uint8).view(rows, -1)[:, : octets * bits]
    spread[:, : stored.shape[1]] = stored
    joined = torch.zeros(rows, octets, 4, dtype=torch.uint8, device=words.device)
    joined[..., :bits] = spread.view(rows, octets, bits)
    joined = joined.view(torch.int32)
    values = torch.empty(rows, octets, 8, dtype=torch.uint8, device=words.device)
    for i in range(8):
        values[..., i] = ((joined.view(rows, octets) >> (bits * i)) & (2**bits - 1)).to(torch.uint8)
    return values.view(rows, -1)[:, :cols].contiguous()


def middle_zeros(bits: int, rows: int, groups: int) -> Tensor:
    """The zero points of a symmetric weight as `PackedWeight` has them, `(ceil(rows * bits / 32), groups)` int32."""
    column = pack(torch.full((1, rows), middle(bits), dtype=torch.uint8), bits)
    return column.t().repeat(1, groups)


@dataclass(frozen=True)
class PackedWeight:
    """A `GridWeight` as it lies on disk.

    words: `(N, ceil(K * bits / 32))` int32, packed along K; zeros: `(ceil(N * bits / 32), K / group_size)` int32,
    packed along N; scales: `(N, K / group_size)` bfloat16; shape: `(N, K)`.
    """

    words: Tensor
    zeros: Tensor
    scales: Tensor
    shape: tuple[int, int]
    bits: int

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.scales.shape[1]

    @property
    def parts(self) -> tuple["PackedWeight", ...]:
        return (self,)

    @classmethod
    def pack(cls, weight: GridWeight) -> "PackedWeight":
        zeros = pack(weight.zeros.t(), weight.bits).t().contiguous()
        return cls(pack(weight.codes, weight.bits), zeros, weight.scales, tuple(weight.codes.shape), weight.bits)

    def unpack(self) -> GridWeight:
        n, k = self.shape
        zeros = unpack(self.zeros.t().contiguous(), self.bits, n).t().contiguous()
        return GridWeight(unpack(self.words, self.bits, k), zeros, self.scales, self.bits)


@dataclass(frozen=True)
class JoinedWeight:
    """One weight with the rows of all parts in order, each still where it was: joining copies nothing.

    The parts share in_features, bits and group size.
    """

    parts: tuple[PackedWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def bits(self) -> int:
        return self.parts[0].bits

    @property
    def group_size(self) -> int:
        return self.parts[0].group_size

    def concat(self) -> PackedWeight:
        """The same weight in one piece: a copy."""
        words = torch.cat([part.words for part in self.parts])
        scales = torch.cat([part.scales for part in self.parts])
        return PackedWeight(words, self._concat_zeros(), scales, self.shape, self.bits)

    def _concat_zeros(self) -> Tensor:
        if all(part.shape[0] * self.bits % 32 == 0 for part in self.parts[:-1]):  # each begins with a word of its own
            return torch.cat([part.zeros for part in self.parts])
        rows = [unpack(part.zeros.t().contiguous(), self.bits, part.shape[0]) for part in self.parts]
        return pack(torch.cat(rows, dim=1), self.bits).t().contiguous()

    def unpack(self) -> GridWeight:
        return self.concat().unpack()
