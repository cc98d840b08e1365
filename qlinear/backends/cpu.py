"""The cpu target on native kernels: bfloat16 or float32 activations, packed 3- or 4-bit weights, torch's threads."""

import ctypes
import mmap

import torch
from torch import Tensor

from qlinear.backends import native
from qlinear.errors import TargetError
from qlinear.packing import JoinedWeight, PackedWeight

TILE = 32  # rows that the kernels' layout keeps together
HUGE_PAGE = 2 << 20
BLOCK_BYTES = 64 << 20


class Arena:
    """Memory for packed weights: blocks on huge pages, handed out in order, so that weights that are read one after
    the other also lie so. A block lives as long as any weight in it.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """`size` bytes of uint8, uninitialized, 64-byte aligned."""
        padded = -(-size // 64) * 64
        if padded > self._free.numel():
            self._free = huge_pages(max(padded, BLOCK_BYTES))
        taken, self._free = self._free[:size], self._free[padded:]
        return taken


def huge_pages(size: int) -> Tensor:
    """At least `size` bytes of uint8, zeros, fresh from the system.

    What the allocator has had before would stay on small pages, whatever is asked for. Raises `TargetError` where there
    is not so much.
    """
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    try:
        mapped = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise TargetError(f"{size / 1e9:.1f} GB of memory are not to be had: {error.strerror}") from error
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -memory.data_ptr() % HUGE_PAGE
    native.library().awq_use_huge_pages(memory.data_ptr() + start, size)
    return memory[start : start + size]


class CpuWeight:
    """A weight in the kernels' layout (qlinear/csrc/common/layout.h).

    packed: uint8, the padded weight with its scales and zeros; bias: `(N,)` float32 or None. Copies and pickles as
    the tensors it holds.
    """

    def __init__(self, packed: Tensor, bias: Tensor | None, n: int, k: int, bits: int, group_size: int) -> None:
        self.packed, self.bias = packed, bias
        self.n, self.k, self.bits, self.group_size = n, k, bits, group_size
        bias_address = None if bias is None else bias.data_ptr()
        self.native = native.Weight(packed.data_ptr(), bias_address, n, k, bits, group_size)
        self.address = ctypes.addressof(self.native)

    def __reduce__(self) -> tuple:
        # a clone: the tensor itself would take its whole block along
        return CpuWeight, (self.packed.clone(), self.bias, self.n, self.k, self.bits, self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes that a matmul reads: codes, scales, zeros and bias."""
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)


class CpuBackend:
    """`qlinear.backends.base.Backend` on the native kernels; `name` says which instruction set they use.

    Raises `TargetError` where the kernels are not built or RUN_AWQ_ISA names an instruction set that is not there.
    """

    device = torch.device("cpu")
    joins_gate_up = True

    def __init__(self) -> None:
        self.name = f"cpu/{native.select_isa()}"
        self._library = native.library()
        self._linear = self._library.awq_linear
        self._arena = Arena()

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> CpuWeight:
        """Lay the weight out for the kernels, at the speed of memory; `weight` is not needed afterwards."""
        (n, k), bits, group_size = weight.shape, weight.bits, weight.group_size
        packed = self._arena.take(self._library.awq_packed_bytes(n, k, bits, group_size))
        whole_tiles = all(part.shape[0] % TILE == 0 for part in weight.parts[:-1])
        address = packed.data_ptr()
        for part in weight.parts if whole_tiles else (weight.concat(),):
            words, zeros, scales = part.words.contiguous(), part.zeros.contiguous(), part.scales.contiguous()
            sources = words.data_ptr(), zeros.data_ptr(), scales.data_ptr()
            self._library.awq_pack(*sources, part.shape[0], k, bits, group_size, address)
            address += self._library.awq_packed_bytes(part.shape[0], k, bits, group_size)
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True).contiguous()
        return CpuWeight(packed, bias, n, k, bits, group_size)

    def matmul(self, x: Tensor, prepared: CpuWeight) -> Tensor:
        """`x @ weight.T + bias`: `(..., K)` in, `(..., N)` out, bfloat16 or float32; inference only, no gradient.

        Raises `TargetError` for another dtype.
        """
        if torch.compiler.is_compiling():
            w = prepared
            return torch.ops.run_awq.qlinear(x, w.packed, w.bias, w.n, w.k, w.bits, w.group_size)
        return _linear(self._linear, x, prepared.address, prepared.n, prepared.k)


def _linear(function: ctypes._CFuncPtr, x: Tensor, weight: int, n: int, k: int) -> Tensor:
    """One call of awq_linear; `weight` is the address of a `native.Weight`. Lean: a token takes 200 of these."""
    dtype = native.DTYPES.get(x.dtype)
    if dtype is None:
        raise TargetError(f"the cpu kernels take bfloat16 or float32 activations, not {x.dtype}; use --precision")
    shape = x.shape
    if shape[-1] != k:
        raise ValueError(f"activations have {shape[-1]} features, the weight has {k}")
    y = x.new_empty(shape[:-1] + (n,))
    stride = k
    if not x.is_contiguous():
        x = x.reshape(-1, k)
        if x.stride(1) != 1:
            x = x.contiguous()
        stride = x.stride(0)
    function(weight, x.data_ptr(), x.numel() // k, stride, dtype, y.data_ptr())
    return y


@torch.library.custom_op("run_awq::qlinear", mutates_args=(), device_types="cpu")
def qlinear(x: Tensor, packed: Tensor, bias: Tensor | None, n: int, k: int, bits: int, group_size: int) -> Tensor:
    """The matmul as a torch operator, which torch.compile and torch.export keep as one node.

    x: `(..., K)` bfloat16 or float32; packed, bias and the numbers: the fields of a `CpuWeight`.
    """
    weight = CpuWeight(packed, bias, n, k, bits, group_size)
    return _linear(native.library().awq_linear, x, weight.address, n, k)


@qlinear.register_fake
def _(x: Tensor, packed: Tensor, bias: Tensor | None, n: int, k: int, bits: int, group_size: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))
