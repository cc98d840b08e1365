"""The cpu target on native kernels: bfloat16 or float32 activations, packed 3- or 4-bit weights, torch's threads."""

import ctypes

import torch
from torch import Tensor

from qlinear.backends.base import Backend
from qlinear.backends.cpu import native
from qlinear.backends.cpu.memory import Arena
from qlinear.backends.cpu.pack import TILE, StoredWeight, pack
from qlinear.backends.cpu.weight import CpuWeight
from qlinear.backends.stack import Stack, StackDecoder
from qlinear.backends.widths import Widths
from qlinear.errors import TargetError
from qlinear.packing import JoinedWeight, PackedWeight

DTYPES = {torch.bfloat16: 0, torch.float32: 1}  # enum awq_dtype


class CpuBackend(Backend):
    """`qlinear.backends.base.Backend` on the native kernels; `name` says which instruction set they use.

    int8: round bfloat16 activations to int8, as of `CpuWeight`; others are then refused. widths: of what its decoders
    hold. Raises `TargetError` where the kernels are not built or RUN_AWQ_ISA names an instruction set that is not
    there.
    """

    device = torch.device("cpu")

    def __init__(self, int8: bool = False, widths: Widths = Widths()) -> None:
        self.name = native.code_name(int8, widths)
        self._int8, self.widths = int8, widths
        native.use_torch_threads()
        self._linear = native.library().awq_linear
        self._arena = Arena()

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> CpuWeight:
        """Lay the weight out for the kernels, at the speed of memory; `weight` is not needed afterwards."""
        whole_tiles = all(part.shape[0] % TILE == 0 for part in weight.parts[:-1])
        parts = [_stored(part) for part in (weight.parts if whole_tiles else (weight.concat(),))]
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True).contiguous()
        laid = pack(parts, None, self._arena)
        packed = torch.from_numpy(laid.packed)
        return CpuWeight(packed, bias, laid.n, laid.k, laid.bits, laid.group_size, int8=self._int8)

    def decoder(self, stack: Stack, max_tokens: int, chunk: int, slots: int = 1) -> StackDecoder:
        from qlinear.backends.cpu.decoder import CpuDecoder

        return CpuDecoder(stack, max_tokens, chunk, slots, self.widths)

    def matmul(self, x: Tensor, prepared: CpuWeight) -> Tensor:
        """`x @ weight.T + bias`: `(..., K)` in, `(..., N)` out, bfloat16 or float32; inference only, no gradient.

        Raises `TargetError` for another dtype.
        """
        w = prepared
        if torch.compiler.is_compiling():
            return torch.ops.run_awq.qlinear(x, w.packed, w.bias, w.n, w.k, w.bits, w.group_size, w.int8)
        return _linear(self._linear, x, w)


def _stored(part: PackedWeight) -> StoredWeight:
    return StoredWeight(
        part.words.contiguous(), part.zeros.contiguous(), part.scales.contiguous(), *part.shape, part.bits
    )


def _linear(function: ctypes._CFuncPtr, x: Tensor, weight: CpuWeight) -> Tensor:
    """One call of awq_linear. Lean: a token takes 200 of these."""
    dtype, n, k = DTYPES.get(x.dtype), weight.n, weight.k
    if dtype is None:
        raise TargetError(f"the cpu kernels take bfloat16 or float32 activations, not {x.dtype}")
    if weight.int8 and dtype != DTYPES[torch.bfloat16]:
        raise TargetError(f"activations are rounded to int8 from bfloat16 only, not from {x.dtype}; use w4abf16")
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
    if function(weight.address, x.data_ptr(), x.numel() // k, stride, dtype, y.data_ptr()):
        raise MemoryError
    return y


@torch.library.custom_op("run_awq::qlinear", mutates_args=(), device_types="cpu")
def qlinear(
    x: Tensor, packed: Tensor, bias: Tensor | None, n: int, k: int, bits: int, group_size: int, int8: bool
) -> Tensor:
    """The matmul as a torch operator, which torch.compile and torch.export keep as one node.

    x: `(..., K)` bfloat16 or float32; packed, bias and the rest: the fields of a `CpuWeight`.
    """
    return _linear(native.library().awq_linear, x, CpuWeight(packed, bias, n, k, bits, group_size, int8=int8))


@qlinear.register_fake
def _(x: Tensor, packed: Tensor, bias: Tensor | None, n: int, k: int, bits: int, group_size: int, int8: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))
