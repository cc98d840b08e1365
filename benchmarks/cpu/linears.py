"""One linear layer, by our kernels and by those of ONNX Runtime and torch, in turns, beside the machine's limits.

Every implementation multiplies by a chain of matrices too large for the caches; rounds alternate between them, with a
pause in between, so that one runtime's spinning threads do not slow the next. Our kernels are called as the fused
decoder calls them, results in memory that is there, and once more through `matmul`, which is how modules do it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cpu.peers import Case, peers
from benchmarks.cpu.report import Kernel, LinearRow, LinearRun, Shape, Timed
from benchmarks.cpu.roofs import Roof, limits_of
from qlinear.backends.cpu import native
from qlinear.backends.cpu.backend import DTYPES, CpuBackend
from qlinear.backends.cpu.weight import CpuWeight
from qlinear.grid import GridWeight, check_divides
from qlinear.packing import PackedWeight

# Bytes of 4-bit codes in a chain. Eight times a 32 MB cache leaves little to be found there when memory is the limit;
# where arithmetic is, twice does.
CHAIN_BYTES, SHORT_CHAIN_BYTES = 256 << 20, 96 << 20
MANY_ROWS = 32
PAUSE = 0.02  # seconds: longer than the spinning of libgomp and of ONNX Runtime's threads
LONG = 0.1  # seconds: a job that warms itself up
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Bench:
    """How the layers are timed. seconds: for each shape and M; roofs: measured in the same rounds."""

    group_size: int
    seconds: float
    roofs: list[Roof]


def random_weight(shape: Shape, bits: int, group_size: int) -> GridWeight:
    n, k = shape.n, shape.k
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group_size), dtype=torch.uint8)
    return GridWeight(codes, zeros, (torch.rand(n, k // group_size) * 0.01 + 0.001).bfloat16(), bits)


def ours(weight: GridWeight, count: int) -> list[Case]:
    """As the fused decoder calls the kernels; of 4 bits also with int8, and one call from Python a matmul."""
    exact, int8 = CpuBackend(), CpuBackend(int8=True)  # each with an arena of its own
    packed = PackedWeight.pack(weight)
    chain = [exact.prepare(packed, None) for _ in range(count)]
    size = chain[0].nbytes
    if weight.bits == 3:
        return [Case(Kernel.W3, size, count, _passes(chain))]
    rounding = [int8.prepare(packed, None) for _ in range(count)]

    def matmuls(x: Tensor) -> list[Tensor]:
        return [exact.matmul(x, w) for w in chain]

    return [
        Case(Kernel.W4, size, count, _passes(chain)),
        Case(Kernel.W4_INT8, size, count, _passes(rounding)),
        Case(Kernel.W4_MATMUL, size, count, matmuls),
    ]


def _passes(chain: list[CpuWeight]) -> Callable[[Tensor], None]:
    """One result's memory for all of the chain."""
    multiply = native.library().awq_linear

    def passes(x: Tensor) -> None:
        n, k = chain[0].n, chain[0].k
        y = x.new_empty(len(x), n)
        x_at, y_at, rows, dtype = x.data_ptr(), y.data_ptr(), len(x), DTYPES[x.dtype]
        for w in chain:
            multiply(w.address, x_at, rows, k, dtype, y_at)

    return passes


def cases(shape: Shape, group_size: int, chain_bytes: int) -> list[Case]:
    count = chain_length(shape, chain_bytes)
    four = random_weight(shape, 4, group_size)
    four_bits, *others = ours(four, count)
    three_bits = ours(random_weight(shape, 3, group_size), count)
    return [four_bits, *three_bits, *others, *(make(four, count) for make in peers())]


def chain_length(shape: Shape, chain_bytes: int) -> int:
    """How many matrices hold that many bytes of 4-bit codes; two at least."""
    return max(2, -(-chain_bytes // (shape.n * shape.k // 2)))


def alternate(jobs: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Times of each job, taken in turns until `seconds` have passed, at least LEAST_ROUNDS of each."""
    times: list[list[float]] = [[] for _ in jobs]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < LEAST_ROUNDS:
        for job, taken in zip(jobs, times, strict=True):
            time.sleep(PAUSE)
            if not taken or taken[-1] < LONG:
                job()
            start = time.perf_counter()
            job()
            taken.append(time.perf_counter() - start)
    return times


def measure(shape: Shape, m: int, contestants: list[Case], bench: Bench) -> LinearRun:
    """The machine's limits and every implementation, taken in the same rounds."""
    x = torch.randn(m, shape.k).bfloat16()
    jobs = [roof.run for roof in bench.roofs] + [lambda case=case: case.passes(x) for case in contestants]
    times = alternate(jobs, bench.seconds)
    limits = limits_of(bench.roofs, times[: len(bench.roofs)])
    rows = [
        LinearRow(case.kernel, case.weight_bytes, Timed.of([chain / case.count for chain in taken]))
        for case, taken in zip(contestants, times[len(bench.roofs) :], strict=True)
    ]
    return LinearRun(shape, m, bench.group_size, limits, tuple(rows))


def sweep(shape: Shape, all_m: list[int], bench: Bench) -> Iterator[LinearRun]:
    """A run for each M in turn, few rows first. Raises `GridError` where the group size does not divide K."""
    check_divides(shape.k, bench.group_size, f"a layer of {shape}")
    for chain_bytes, some_m in (
        (CHAIN_BYTES, [m for m in all_m if m < MANY_ROWS]),
        (SHORT_CHAIN_BYTES, [m for m in all_m if m >= MANY_ROWS]),
    ):
        contestants = cases(shape, bench.group_size, chain_bytes) if some_m else []
        for m in some_m:
            with torch.inference_mode():
                yield measure(shape, m, contestants, bench)
