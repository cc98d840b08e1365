"""Whether this machine has a usable NPU: something to tell the user, since every matmul is emulated either way."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path


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
