"""The two generations of the array, as data: `phx` (XDNA 1, Phoenix) and `stx` (XDNA 2, Strix).

Shapes, groups and layouts are those of the kernels AMD compiled for RyzenAI-SW 1.2 (`qlinear_2.hpp`,
`matrix_formatting.h`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from qlinear.backends.aie.latency import Figure, LatencyModel
from qlinear.errors import TargetError


class Kernel(NamedTuple):
    """A compiled weight shape (K, N) and the group sizes it was compiled for."""

    k: int
    n: int
    groups: tuple[int, ...]


class SubVolume(NamedTuple):
    """The unit in which a weight reaches a core: `k` x `n` weights of one group size, in `size` bytes.

    `zeros_at`, `scales_at` and `codes_at` are byte offsets. Codes lie in strips of `strip` columns, row-major within
    one; `strip == n` is plain row-major.
    """

    k: int
    n: int
    group: int
    zeros_at: int
    scales_at: int
    codes_at: int
    strip: int
    size: int

    @property
    def groups(self) -> int:
        return self.k // self.group


@dataclass(frozen=True, eq=False)
class Device:
    """One array and the kernels compiled for it; compared by identity, so that it is a cheap key.

    row_kernels: `(from_rows, kernel_m)`; the kernel for a number of rows is the last whose `from_rows` it reaches.
    kernels: shapes narrow to wide, the one for deep weights (K > 4096) last.
    rows_per_pass: rows of activations served by one pass of the weight through the array: 8 on phx, whose outer loop
        runs M / 8 times; on stx 4 rows of cores with sub-volumes of 64 rows, an estimate that only prompts feel.
    parameter_bytes: the area behind the activations that holds the parameter words; 0 where they travel elsewhere.
    result_dtype: what comes back to the host, which adds further K blocks.
    """

    name: str
    row_kernels: tuple[tuple[int, int], ...]
    kernels: tuple[Kernel, ...]
    sub_volumes: tuple[SubVolume, ...]
    rows_per_pass: int
    parameter_bytes: int
    result_dtype: torch.dtype
    latency: LatencyModel

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(volume.group for volume in self.sub_volumes)

    def kernel_m(self, rows: int) -> int:
        """The M of the kernel that takes the next of `rows` >= 1 rows."""
        return [m for from_rows, m in self.row_kernels if rows >= from_rows][-1]

    def sub_volume(self, group: int) -> SubVolume:
        return next(volume for volume in self.sub_volumes if volume.group == group)


# Four columns of sub-volumes are stored zig-zag, one for each core of a column of the array (both devices).
ZIG_ZAG = 4

_MEASURED_GEMM = "bf16 GEMM measured at {} TOPS over the peak of {}, arXiv 2512.13282"
_BANDWIDTH = "estimate; DMA channels are symmetric"
_OVERHEAD = (
    "upper bound: AMD's 8-10% for 64 fewer dispatches at 3.5 tokens/s; an empty kernel takes 0.045 ms, XRT issue 9018"
)

# XDNA 1 (Phoenix), kernels a16fw4acc32f
PHX = Device(
    name="phx",
    row_kernels=((1, 1), (2, 8), (9, 32)),
    kernels=(
        Kernel(4096, 4096, (32, 128)),
        Kernel(4096, 12288, (32, 128)),
        Kernel(4096, 32768, (32, 128)),
        Kernel(11008, 4096, (32, 128)),
    ),
    sub_volumes=(
        SubVolume(k=32, n=128, group=32, zeros_at=0, scales_at=64, codes_at=320, strip=128, size=2368),
        SubVolume(k=128, n=128, group=128, zeros_at=0, scales_at=64, codes_at=320, strip=128, size=8512),
    ),
    rows_per_pass=8,
    parameter_bytes=2048,
    result_dtype=torch.float32,
    latency=LatencyModel(
        cores=Figure(16, "cores", "4x4 overlay, RyzenAI-SW 1.2"),
        macs_per_clock=Figure(128, "bf16 MACs per clock and core", "AIE-ML architecture"),
        clock_hz=Figure(1.0e9, "Hz", "low end of 1.0-1.3 GHz; gives AMD's nominal 10 TOPS"),
        efficiency=Figure(0.757, "of peak", _MEASURED_GEMM.format("3.1", "4.1")),
        read_bandwidth=Figure(37e9, "bytes/s", "estimate, middle of 32-42 GB/s"),
        write_bandwidth=Figure(37e9, "bytes/s", _BANDWIDTH),
        dispatch_overhead=Figure(0.4e-3, "s", _OVERHEAD),
    ),
)

# XDNA 2 (Strix), kernels mladf_2x4x4_a16fw4acc16f
STX = Device(
    name="stx",
    row_kernels=((1, 1), (2, 128), (2048, 2048)),
    kernels=(
        Kernel(4096, 4096, (128,)),
        Kernel(4096, 12288, (128,)),
        Kernel(4096, 22528, (128,)),
        Kernel(4096, 32768, (32,)),
        Kernel(11008, 4096, (128,)),
    ),
    sub_volumes=(
        SubVolume(k=32, n=32, group=32, zeros_at=512, scales_at=576, codes_at=0, strip=8, size=640),
        SubVolume(k=128, n=32, group=128, zeros_at=2048, scales_at=2112, codes_at=0, strip=8, size=2176),
    ),
    rows_per_pass=256,
    parameter_bytes=0,
    result_dtype=torch.bfloat16,
    latency=LatencyModel(
        cores=Figure(32, "cores", "2x4x4 overlay, RyzenAI-SW 1.2"),
        macs_per_clock=Figure(256, "bf16 MACs per clock and core", "AIE2P architecture"),
        clock_hz=Figure(1.5e9, "Hz", "low end of 1.5-1.8 GHz; gives AMD's nominal 50 TOPS"),
        efficiency=Figure(0.598, "of peak", _MEASURED_GEMM.format("14.7", "24.6")),
        read_bandwidth=Figure(74e9, "bytes/s", "estimate, twice XDNA 1"),
        write_bandwidth=Figure(74e9, "bytes/s", _BANDWIDTH),
        dispatch_overhead=Figure(0.4e-3, "s", "as on phx: " + _OVERHEAD),
    ),
)

DEVICES = {device.name: device for device in (PHX, STX)}


def find_device(name: str) -> Device:
    """The device called `name`; `TargetError` if there is none."""
    if name not in DEVICES:
        raise TargetError(f"unknown AIE device {name!r}; there are {' and '.join(DEVICES)}")
    return DEVICES[name]
