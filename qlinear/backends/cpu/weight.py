"""A weight as the kernels read it."""

import copy
import ctypes
from functools import partial

from qlinear.backends.cpu import native
from qlinear.backends.stack import Array


class CpuWeight:
    """A weight in the kernels' layout (qlinear/csrc/common/layout.h).

    packed: uint8, the padded weight with its scales and zeros; bias: `(N,)` float32 or None; int8: whether bfloat16
    activations are rounded to int8, with one scale for each row and group. Copies and pickles as the arrays it holds.
    """

    def __init__(
        self, packed: Array, bias: Array | None, n: int, k: int, bits: int, group_size: int, *, int8: bool = False
    ) -> None:
        self.packed, self.bias = packed, bias
        self.n, self.k, self.bits, self.group_size, self.int8 = n, k, bits, group_size, int8
        bias_address = None if bias is None else native.address(bias)
        self.native = native.Weight(native.address(packed), bias_address, n, k, bits, group_size, int8)
        self.address = ctypes.addressof(self.native)

    def __reduce__(self) -> tuple:
        # a copy: the array itself would take its whole block along
        packed, make = copy.deepcopy(self.packed), partial(CpuWeight, int8=self.int8)
        return make, (packed, self.bias, self.n, self.k, self.bits, self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes that a matmul reads: codes, scales, zeros and bias."""
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)
