"""The AIE target: AMD's Ryzen AI array, emulated on the CPU from the array's own bytes.

No result of this backend is a measurement of the array. What comes out is what the array's kernels would compute; the
backend's meter has what they would move and, by a stated model, how long they would take.
"""

import torch
from torch import Tensor

from qlinear.backends.aie.counters import ArrayMeter
from qlinear.backends.aie.devices import find_device
from qlinear.backends.aie.execution import ArrayWeight, multiply
from qlinear.backends.aie.latency import LatencyModel
from qlinear.backends.aie.packing import pack
from qlinear.backends.aie.tiling import Tiling, tile_matmul
from qlinear.backends.base import Backend
from qlinear.packing import JoinedWeight, PackedWeight


class AieBackend(Backend):
    """`qlinear.backends.base.Backend` that emulates one array, and meters what every matmul would have cost it.

    device: "phx" or "stx"; latency: the figures of the model, the device's own where None. `TargetError` for an
    unknown device, here, and for a weight its kernels cannot run, in `prepare`.
    """

    # As in AMD's flow: joined, they fit no kernel of phx and are padded by half (docs/aie.md has the figures).
    joins_gate_up = False
    float_target = "cpu"

    def __init__(self, device: str = "phx", latency: LatencyModel | None = None):
        self.array = find_device(device)
        self.name = f"aie_emu/{device} (emulated)"
        self.device = torch.device("cpu")
        self._meter = ArrayMeter(latency or self.array.latency)

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> ArrayWeight:
        """Pack the weight `(N, K)` into sub-volumes and derive from their bytes what `matmul` needs."""
        n, k = weight.shape
        tiling = tile_matmul(self.array, 1, k, n, weight.bits, weight.group_size)
        return ArrayWeight.dequantize(pack(weight.unpack(), bias, tiling), tiling)

    def matmul(self, x: Tensor, prepared: ArrayWeight) -> Tensor:
        """`(..., K)` to `(..., N)` in the dtype of `x`; the values are bfloat16, as the array's are."""
        flat = x.reshape(-1, prepared.tiling.k).to(torch.bfloat16)
        self._meter.count(self.tiling(flat.shape[0], prepared))
        return multiply(flat, prepared).view(*x.shape[:-1], prepared.tiling.n).to(x.dtype)

    def meter(self) -> ArrayMeter:
        """What every matmul so far would have cost the array."""
        return self._meter

    def tiling(self, m: int, prepared: ArrayWeight) -> Tiling:
        """How the array would multiply `m` rows by this weight; `str(tiling)` reads well."""
        layer = prepared.tiling
        return tile_matmul(self.array, m, layer.k, layer.n, layer.bits, layer.group_size)
