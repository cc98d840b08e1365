"""Which kernels the cuda target runs on, on this machine."""

import os

from qlinear.backends.base import Backend
from qlinear.errors import TargetError

VARIABLE = "RUN_AWQ_CUDA_KERNELS"
OWN, HUMMING, TORCH = "own", "humming", "torch"
KERNELS = (OWN, HUMMING, TORCH)


def choose() -> tuple[Backend, str | None]:
    """The backend, and what the user should know of it; a GPU is there.

    The kernels of this project; where they cannot be had, humming-kernels if those are installed, else plain torch.
    RUN_AWQ_CUDA_KERNELS names others. Raises `TargetError` where those that it names are not to be had.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in KERNELS:
        raise TargetError(f"{VARIABLE}={wanted} names no kernels; use one of {', '.join(KERNELS)}")
    if wanted == TORCH:
        return _torch(), None
    if wanted == HUMMING:
        return _humming(), None
    try:
        return _own(), None
    except TargetError as error:
        if wanted == OWN:
            raise
        reason = str(error)
    try:
        return _humming(), f"running on humming-kernels: {reason}"
    except TargetError:
        return _torch(), f"running in plain torch, a byte for each weight: {reason}"


def _own() -> Backend:
    from qlinear.backends.cuda.backend import CudaBackend
    from qlinear.backends.cuda.driver import GpuLauncher

    return CudaBackend(GpuLauncher())


def _humming() -> Backend:
    from qlinear.backends.cuda.humming import HummingBackend

    return HummingBackend()


def _torch() -> Backend:
    from qlinear.backends.reference import ReferenceBackend

    return ReferenceBackend("cuda/torch", "cuda")
