"""Linear layers of Llama-2-7B over M rows of activations: ours beside cuBLAS, torch's tinygemm and humming-kernels."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cuda.report import LinearRun
from benchmarks.cuda.timing import WARM_L2, seconds_each
from qlinear.backends.base import Backend
from qlinear.backends.cuda.backend import CudaBackend
from qlinear.backends.cuda.weight import CudaWeight
from qlinear.grid import GridWeight
from qlinear.packing import PackedWeight

SHAPES = {
    "qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008), "head": (32000, 4096)
}  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 128, 512)
GROUP = 64
BF16, TINYGEMM = "cuBLAS bf16", "tinygemm"

Multiply = Callable[[Tensor], object]


def random_packed(n: int, k: int, bits: int, group: int = GROUP) -> PackedWeight:
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, device="cuda")
    zeros = torch.randint(0, 2**bits, (n, k // group), dtype=torch.uint8, device="cuda")
    scales = (0.001 + 0.002 * torch.rand(n, k // group, device="cuda")).bfloat16()
    return PackedWeight.pack(GridWeight(codes, zeros, scales, bits))


def largest_error(backend: Backend, bits: int) -> float:
    """Relative to float64, before which the output was rounded to bfloat16: about 2e-3 at best."""
    worst = 0.0
    for n, k, group in ((4096, 4096, 64), (1000, 11008, 128), (77, 2304, 256), (40, 96, 32)):
        packed, x = random_packed(n, k, bits, group), torch.randn(16, k, device="cuda").bfloat16()
        dense = packed.unpack().dequantize().double()
        for rows in (1, 3, 16):
            exact = x[:rows].double() @ dense.t()
            y = backend.matmul(x[:rows], backend.prepare(packed, None))
            worst = max(worst, ((y.double() - exact).norm() / exact.norm()).item())
    return worst


def times(size: int) -> int:
    """How many weights of a size calls have to take turns with, so that none of them is found in L2."""
    return max(3, int(WARM_L2 / size) + 1)


def ours(backend: CudaBackend, bits: int, n: int, k: int) -> tuple[list[Multiply], int]:
    first = backend.prepare(random_packed(n, k, bits), None)
    again = (CudaWeight(first.packed.clone(), None, (n, k), bits, GROUP) for _ in range(times(first.nbytes) - 1))
    weights = [first, *again]
    return [lambda x, weight=weight: backend.matmul(x, weight) for weight in weights], first.nbytes


def others(backend: Backend, bits: int, n: int, k: int) -> tuple[list[Multiply], int]:
    packed, size = random_packed(n, k, bits), n * k * bits // 8 + n * k // GROUP * (16 + bits) // 8
    weights = [backend.prepare(packed, None) for _ in range(times(size))]
    return [lambda x, weight=weight: backend.matmul(x, weight) for weight in weights], size


def cublas(n: int, k: int) -> tuple[list[Multiply], int]:
    weights = [torch.randn(n, k, device="cuda").bfloat16() for _ in range(times(2 * n * k))]
    return [lambda x, weight=weight: F.linear(x, weight) for weight in weights], 2 * n * k


def tinygemm(n: int, k: int) -> tuple[list[Multiply], int]:
    """What torchao's int4 weight-only layers call."""
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    scales = torch.rand(k // GROUP, n, 2, device="cuda").bfloat16()
    size = n * k // 2 + scales.nbytes
    weights = [torch._convert_weight_to_int4pack(codes, 8) for _ in range(times(size))]
    return [lambda x, weight=weight: torch._weight_int4pack_mm(x, weight, GROUP, scales) for weight in weights], size


def contestants(backend: CudaBackend, humming: Backend | None) -> Iterator[tuple[str, int, Callable]]:
    """humming's last: it compiles for every shape and number of rows."""
    for bits in (4, 3):
        yield f"ours w{bits}", bits, partial(ours, backend, bits)
    yield BF16, 16, cublas
    yield TINYGEMM, 4, tinygemm
    for bits in (4, 3) if humming is not None else ():
        yield f"humming w{bits}", bits, partial(others, humming, bits)


def sweep(backend: CudaBackend, humming: Backend | None, all_m: tuple[int, ...] = ROWS) -> Iterator[LinearRun]:
    for name, bits, make in contestants(backend, humming):
        for n, k in SHAPES.values():
            calls, size = make(n, k)
            for m in all_m:
                x = torch.randn(m, k, device="cuda").bfloat16()
                seconds = seconds_each([partial(call, x) for call in calls])
                yield LinearRun(name, bits, n, k, m, seconds, size)
            del calls
