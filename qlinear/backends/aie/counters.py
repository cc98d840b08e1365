"""What a matmul would have cost on the array: counts that are exact, and a time that is modelled.

Modelled time of a dispatch = max(transfer, compute) + overhead. It covers the matmuls on the array and their
dispatch, not what the host does in between (attention, norms, the cache, sampling).
"""

from dataclasses import dataclass, fields
from functools import cache

from qlinear.backends.aie.latency import LatencyModel
from qlinear.backends.aie.tiling import Tiling

_ACTIVATION_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class Counters:
    """Totals over any number of matmuls. Add them, or subtract an earlier snapshot from a later one.

    Bytes are the device's traffic with memory, padding included; MACs are multiply-accumulates. transfer, compute
    and overhead seconds are the parts of the model; modelled_seconds has only the longer of the first two of each
    dispatch, plus the overhead.
    """

    matmuls: int = 0
    dispatches: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    result_bytes: int = 0
    useful_macs: int = 0
    padded_macs: int = 0
    transfer_seconds: float = 0.0
    compute_seconds: float = 0.0
    overhead_seconds: float = 0.0
    modelled_seconds: float = 0.0

    @property
    def bytes_moved(self) -> int:
        return self.weight_bytes + self.activation_bytes + self.result_bytes

    @property
    def padding_waste(self) -> float:
        """The part of the multiply-accumulates spent on padding."""
        return 1 - self.useful_macs / self.padded_macs if self.padded_macs else 0.0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> "Counters":
        return Counters(*(getattr(self, f.name) * times for f in fields(self)))


@dataclass
class ArrayMeter:
    """`qlinear.backends.base.Meter` of an array: counts matmuls, by their tilings."""

    latency: LatencyModel
    counters: Counters = Counters()

    def count(self, tiling: Tiling) -> None:
        """Add what one matmul costs."""
        self.counters += cost(tiling, self.latency)


@cache
def cost(tiling: Tiling, latency: LatencyModel) -> Counters:
    """What one matmul under `tiling` costs."""
    blocks = tiling.k_blocks * tiling.n_blocks
    per_row_block = [_dispatch_cost(tiling, m, latency) * blocks for m in tiling.row_blocks]
    useful = tiling.m * tiling.k * tiling.n
    return sum(per_row_block, Counters(matmuls=1, useful_macs=useful))


def _dispatch_cost(tiling: Tiling, kernel_m: int, latency: LatencyModel) -> Counters:
    """One dispatch of `kernel_m` rows; the whole weight block passes once for every `rows_per_pass` of them."""
    device, kernel = tiling.device, tiling.kernel
    weight = tiling.block_bytes * -(-kernel_m // device.rows_per_pass)
    activations = kernel_m * kernel.k * _ACTIVATION_BYTES + device.parameter_bytes
    results = kernel_m * kernel.n * device.result_dtype.itemsize
    macs = kernel_m * kernel.k * kernel.n
    transfer = (weight + activations) / latency.read_bandwidth.value + results / latency.write_bandwidth.value
    compute = macs / latency.macs_per_second
    overhead = latency.dispatch_overhead.value
    return Counters(
        dispatches=1,
        weight_bytes=weight,
        activation_bytes=activations,
        result_bytes=results,
        padded_macs=macs,
        transfer_seconds=transfer,
        compute_seconds=compute,
        overhead_seconds=overhead,
        modelled_seconds=max(transfer, compute) + overhead,
    )
