"""The kernels of qlinear/csrc/cuda compiled for this machine's CPU, behind the interface of the GPU's."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from qlinear.backends.cuda.launch import Grid

HERE = Path(__file__).parent
# longjmp between fibers is what a fortified libc takes for a mistake
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror")
QUIET = ("-Wno-unknown-pragmas",)


@functools.cache
def library() -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("the cuda kernels are run on the cpu with g++, which is not here")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kernels.so"
        subprocess.run(["g++", *FLAGS, *QUIET, f"-I{HERE}", str(HERE / "shim.cpp"), "-o", path], check=True)
        return ctypes.CDLL(path)


class CpuLauncher:
    """`qlinear.backends.cuda.launch.Launcher` for a GPU of two multiprocessors."""

    device, name, processors, shared_memory = torch.device("cpu"), "cuda/shim", 2, 100 << 10

    def launch(self, kernel: str, job: ctypes.Structure, grid: Grid) -> None:
        function = ctypes.cast(getattr(library(), kernel), ctypes.c_void_p)
        library().shim_launch(function, ctypes.byref(job), grid.blocks, grid.threads, grid.shared)

    def record(self, run):
        return run

    def finish(self):
        pass
