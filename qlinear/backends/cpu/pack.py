"""A weight as it lies on disk, laid out for the kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlinear.backends.cpu import native
from qlinear.backends.cpu.memory import Arena
from qlinear.backends.cpu.weight import CpuWeight
from qlinear.backends.stack import Array

TILE = 32  # rows that the kernels' layout keeps together


@dataclass(frozen=True)
class StoredWeight:
    """As `qlinear.packing.PackedWeight`, of contiguous arrays of either kind; scales are bfloat16. Lent."""

    words: Array
    zeros: Array
    scales: Array
    n: int
    k: int
    bits: int

    @property
    def group_size(self) -> int:
        return self.k // self.scales.shape[1]


def pack(parts: Sequence[StoredWeight], bias: np.ndarray | None, arena: Arena, int8: bool = False) -> CpuWeight:
    """The rows of all parts in order as one weight; all but the last are whole tiles; int8: as of `CpuWeight`. At the
    speed of memory.
    """
    library, first = native.library(), parts[0]
    n, k, bits, group_size = sum(part.n for part in parts), first.k, first.bits, first.group_size
    packed = arena.take(library.awq_packed_bytes(n, k, bits, group_size))
    address = native.address(packed)
    for part in parts:
        sources = map(native.address, (part.words, part.zeros, part.scales))
        library.awq_pack(*sources, part.n, k, bits, group_size, address)
        address += library.awq_packed_bytes(part.n, k, bits, group_size)
    return CpuWeight(packed, bias, n, k, bits, group_size, int8=int8)
