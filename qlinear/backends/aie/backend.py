"""The AIE target: AMD's Ryzen AI array, emulated on the CPU from the array's own bytes.

No result of this backend is a measurement of the array. What comes out is what the array's kernels would compute;
`counters` has what they would move and, by a stated model, how long they would take.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlinear.backends.aie.counters import Counters, cost
from qlinear.backends.aie.devices import LatencyModel, find_device
from qlinear.backends.aie.execution import Weight, multiply
from qlinear.backends.aie.packing import pack
from qlinear.backends.aie.tiling import Plan, plan_matmul
from qlinear.packing import JoinedWeight, PackedWeight


class AieBackend:
    """Emulates one array. `counters` grows with every matmul; assign `Counters()` to start again.

    device: "phx" or "stx"; latency: the figures of the model, the device's own where None. `TargetError` for an
    unknown device, here, and for a weight its kernels cannot run, in `prepare`.
    """

    # As in AMD's flow: joined, they fit no kernel of phx and are padded by half (docs/aie.md has the figures).
    joins_gate_up = False

    def __init__(self, device: str = "phx", latency: LatencyModel | None = None):
        self.array = find_device(device)
        self.latency = latency or self.array.latency
        self.name = f"aie_emu/{device} (emulated)"
        self.device = torch.device("cpu")
        self.counters = Counters()

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> Weight:
        """Pack the weight `(N, K)` into sub-volumes and derive from their bytes what `matmul` needs."""
        n, k = weight.shape
        plan = plan_matmul(self.array, 1, k, n, weight.bits, weight.group_size)
        return Weight.decode(pack(weight.unpack(), bias, plan), plan)

    def matmul(self, x: Tensor, prepared: Weight) -> Tensor:
        """`(..., K)` to `(..., N)` in the dtype of `x`; the values are bfloat16, as the array's are."""
        flat = x.reshape(-1, prepared.plan.k).to(torch.bfloat16)
        self.counters += cost(self.plan(flat.shape[0], prepared), self.latency)
        return multiply(flat, prepared).view(*x.shape[:-1], prepared.plan.n).to(x.dtype)

    def plan(self, m: int, prepared: Weight) -> Plan:
        """How the array would multiply `m` rows by this weight; `str(plan)` reads well."""
        layer = prepared.plan
        return plan_matmul(self.array, m, layer.k, layer.n, layer.bits, layer.group_size)


@dataclass(frozen=True)
class NpuSearch:
    """What of a usable NPU this machine has; `str()` is the line that results carry."""

    node: Path
    module: str
    driver: bool
    runtime: bool

    def __str__(self) -> str:
        driver = "found" if self.driver else "no"
        runtime = "found" if self.runtime else "no"
        return f"{driver} {self.node} (amdxdna driver), {runtime} {self.module} module; every matmul is emulated"


def find_npu(node: Path = Path("/dev/accel/accel0"), module: str = "pyxrt") -> NpuSearch:
    """Look for the driver's device node and XRT's Python module; nothing is opened or imported."""
    return NpuSearch(node, module, driver=node.exists(), runtime=importlib.util.find_spec(module) is not None)
