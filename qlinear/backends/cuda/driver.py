"""Kernels of qlinear/csrc/cuda on a real GPU: the CUDA driver API through ctypes, on torch's current stream."""

import ctypes
import functools
from collections.abc import Callable

import torch

from qlinear.backends.cuda.binary import kernel_image
from qlinear.backends.cuda.launch import Grid
from qlinear.errors import TargetError

_POINTER, _INT, _UINT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32
# Of enum CUfunction_attribute, CUdevice_attribute, CUlaunchAttributeID.
_DYNAMIC_SHARED, _SHARED_OF_A_BLOCK, _SHARED_OF_A_PROCESSOR, _EARLY = 8, 97, 81, 6


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; the value's union is 64 bytes."""

    _fields_ = [("id", _INT), ("padding", _INT), ("value", _INT * 16)]


class _Config(ctypes.Structure):
    """CUlaunchConfig"""

    _fields_ = [
        *((name, _UINT) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")),
        ("stream", _POINTER),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", _UINT),
    ]


class GpuLauncher:
    """`qlinear.backends.cuda.launch.Launcher` for the GPU that is torch's current device.

    Raises `TargetError` where the kernels cannot be built or loaded for it.
    """

    def __init__(self) -> None:
        index = torch.cuda.current_device()
        self.device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        torch.empty(1, device=self.device)  # so that torch's context is the current one
        self._driver = _driver()
        major, minor = properties.major, properties.minor
        self.name, self.processors = f"cuda/own sm_{major}{minor}", properties.multi_processor_count
        self.shared_memory = self._device_attribute(_SHARED_OF_A_PROCESSOR, index)
        self._most_shared = self._device_attribute(_SHARED_OF_A_BLOCK, index)
        self._module = _POINTER()
        image = kernel_image(major, minor)
        self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), image), "loading the cuda kernels")
        self._functions: dict[str, _POINTER] = {}
        self._has_early = major >= 9
        early = _Attribute(_EARLY)
        early.value[0] = 1
        self._early = early

    def launch(self, kernel: str, job: ctypes.Structure, grid: Grid) -> None:
        function = self._functions.get(kernel) or self._load(kernel)
        parameters = (_POINTER * 1)(ctypes.addressof(job))
        stream = torch.cuda.current_stream(self.device).cuda_stream
        if grid.early and self._has_early:
            config = _Config(grid.blocks, 1, 1, grid.threads, 1, 1, grid.shared, stream, ctypes.pointer(self._early), 1)
            error = self._driver.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None)
        else:
            error = self._driver.cuLaunchKernel(
                function, grid.blocks, 1, 1, grid.threads, 1, 1, grid.shared, _POINTER(stream), parameters, None
            )
        if error:
            self._check(error, f"launching {kernel}")

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()  # once before, so that every kernel is loaded
        self.finish()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def finish(self) -> None:
        torch.cuda.synchronize(self.device)

    def _load(self, kernel: str) -> _POINTER:
        function = _POINTER()
        name = kernel.encode()
        self._check(self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name), f"finding {kernel}")
        self._check(self._driver.cuFuncSetAttribute(function, _DYNAMIC_SHARED, self._most_shared), f"loading {kernel}")
        self._functions[kernel] = function
        return function

    def _device_attribute(self, attribute: int, index: int) -> int:
        value, device = _INT(), _INT()
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), index), "asking for the cuda device")
        error = self._driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        self._check(error, "asking the cuda device for its shared memory")
        return value.value

    def _check(self, error: int, what: str) -> None:
        if error == 0:
            return
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(error, ctypes.byref(text))
        raise TargetError(f"{what} failed: {(text.value or b'').decode() or 'unknown error'} (CUDA error {error})")


@functools.cache
def _driver() -> ctypes.CDLL:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise TargetError("`target=cuda`: the CUDA driver's library (libcuda.so.1) is not found")
