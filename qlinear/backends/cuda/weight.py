"""A weight as the kernels read it."""

from torch import Tensor

from qlinear.backends.cuda.structs import RECORD, TILE, UNIT, Weight


class CudaWeight:
    """A weight in the layout of qlinear/csrc/cuda/layout.h.

    packed: uint8, codes and then records; bias: `(N,)` float32 or None. Copies and pickles as the tensors it holds.
    """

    def __init__(self, packed: Tensor, bias: Tensor | None, shape: tuple[int, int], bits: int, group_size: int) -> None:
        self.packed, self.bias = packed, bias
        self.shape, self.bits, self.group_size = shape, bits, group_size
        self.native = self.rows(0, shape[0])

    def __reduce__(self) -> tuple:
        return CudaWeight, (self.packed, self.bias, self.shape, self.bits, self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes that a matmul reads: codes, scales, zeros and bias."""
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def rows(self, first: int, n: int) -> Weight:
        """Rows [first, first + n) as a weight of their own; `first` is a multiple of `TILE`."""
        k, address = self.shape[1], self.packed.data_ptr()
        return Weight(
            codes=address + first // TILE * tile_codes(k, self.bits),
            records=address + tiles(self.shape[0]) * tile_codes(k, self.bits)
            + first // TILE * tile_records(k, self.group_size),
            bias=None if self.bias is None else self.bias.data_ptr() + 4 * first,
            n=n,
            k=k,
            group_size=self.group_size,
        )  # fmt: skip


def tiles(n: int) -> int:
    return -(-n // TILE)


def tile_codes(k: int, bits: int) -> int:
    """Bytes of one tile's codes, the last unit padded."""
    return -(-k // UNIT) * TILE * UNIT * bits // 8


def tile_records(k: int, group_size: int) -> int:
    """Bytes of one tile's records; groups of 32 come in twos, those of the last unit too."""
    return max(1, UNIT // group_size) * -(-k // max(UNIT, group_size)) * RECORD


def packed_bytes(n: int, k: int, bits: int, group_size: int) -> int:
    return tiles(n) * (tile_codes(k, bits) + tile_records(k, group_size))
