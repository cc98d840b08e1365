"""Where the cuda kernels run in tests: on this machine's CPU, and on its GPU where it has one."""

import pytest
import torch

from qlinear.backends.cuda.backend import CudaBackend
from tests.qlinear.cuda.on_cpu import CpuLauncher

WHERE = ("cpu", "gpu")


def backend_on(where: str) -> CudaBackend:
    if where == "cpu":
        return CudaBackend(CpuLauncher())
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    from qlinear.backends.cuda.driver import GpuLauncher

    return CudaBackend(GpuLauncher())
