"""The grouped affine grid: fit scale and zero point to a weight, choose codes, dequantize them.

A weight is `(N, K)` = (out_features, in_features). Each row is cut along K into groups of `group_size`, and within
a group `w = (q - zero) * scale` with integers `q`, `zero` in `[0, 2**bits - 1]` and `scale` in bfloat16. The scale
is rounded to bfloat16 before the codes are chosen, so what is stored is what was optimised, and the range always
includes 0, so the zero point never has to be clamped away from where it belongs. Symmetric, the zero point is
`2**(bits - 1)` in every group, for readers that know no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.errors import GridError
from qlinear.sizes import GROUP_SIZES


def is_dense(tensor: Tensor) -> bool:
    """Whether its numbers are all in this machine's memory: not sparse, not a list of tensors, not on meta."""
    return not tensor.is_nested and tensor.layout == torch.strided and tensor.device.type == "cpu"


@dataclass(frozen=True)
class GridWeight:
    """A weight on the grid.

    codes: `(N, K)` uint8; zeros: `(N, K / group_size)` uint8; scales: `(N, K / group_size)` bfloat16.
    """

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    bits: int

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def split(self, sizes: Sequence[int]) -> "list[GridWeight]":
        """The weights of `sizes` rows each that this one is made of."""
        parts = zip(self.codes.split(sizes), self.zeros.split(sizes), self.scales.split(sizes), strict=True)
        return [GridWeight(*part, self.bits) for part in parts]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight `(N, K)` the codes stand for; the product is formed in float32, then cast to `dtype`."""
        n, k = self.codes.shape
        grouped = self.codes.view(n, -1, self.group_size).to(torch.float32)
        grouped -= self.zeros.unsqueeze(-1)
        grouped *= self.scales.to(torch.float32).unsqueeze(-1)
        return grouped.view(n, k).to(dtype)


def middle(bits: int) -> int:
    """The zero point of a symmetric grid."""
    return 2 ** (bits - 1)


@dataclass(frozen=True)
class Grid:
    """What places there are for a weight; symmetric: the zero point of every group is the middle code."""

    bits: int
    group_size: int
    symmetric: bool = False

    @property
    def levels(self) -> int:
        """The highest code."""
        return 2**self.bits - 1

    @property
    def bits_per_weight(self) -> float:
        """As stored: a weight's own bits and its share of the group's scale and, if it has one, zero point."""
        return self.bits + (16 if self.symmetric else 16 + self.bits) / self.group_size

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scales `(N, K / group_size)` bfloat16 and zeros (uint8) that span each group's range and 0.

        `weight` is `(N, K)` of any float dtype; the arithmetic is float32. A group of zeros gets scale 1.
        Symmetric, the codes span twice the largest magnitude, as compressed-tensors' `calculate_qparams` has it.
        """
        groups = weight.to(torch.float32).view(weight.shape[0], -1, self.group_size)
        low = groups.amin(-1).clamp(max=0)
        high = groups.amax(-1).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scales = (high / self.levels - low / self.levels).to(torch.bfloat16)  # high - low may overflow
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        if self.symmetric:
            return scales, torch.full_like(scales, middle(self.bits), dtype=torch.uint8)
        zeros = (-low / scales.to(torch.float32)).round_().clamp_(0, self.levels).to(torch.uint8)
        return scales, zeros

    def quantize(self, weight: Tensor, scales: Tensor, zeros: Tensor) -> GridWeight:
        """The nearest code for every weight, with scale and zero given."""
        n, k = weight.shape
        groups = weight.to(torch.float32).view(n, scales.shape[1], -1)
        codes = groups / scales.to(torch.float32).unsqueeze(-1)
        codes = codes.round_().add_(zeros.unsqueeze(-1)).clamp_(0, self.levels)
        return GridWeight(codes.view(n, k).to(torch.uint8), zeros, scales, self.bits)


def check_divides(in_features: int, group_size: int, layer: str) -> None:
    """Raise `GridError` unless `group_size` divides `in_features`, naming the sizes that would."""
    if in_features % group_size == 0:
        return
    fitting = [str(g) for g in GROUP_SIZES if in_features % g == 0]
    advice = f"use `group_size={' or '.join(fitting)}`" if fitting else f"none of {GROUP_SIZES} does"
    raise GridError(f"group size {group_size} does not divide {layer} (in_features {in_features}); {advice}")
