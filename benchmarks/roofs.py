"""The machine's limits at the thread count in use: bytes read and multiply-adds done a second, by roofs.cpp."""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from qlinear.backends.cpu import Arena
from qlinear.backends.native import torch_threads

PIECES, ROUNDS = 64, 100_000
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-march=native", "-ffp-contract=fast", "-Wno-psabi"]


class Memory(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_void_p), ("piece", ctypes.c_int64)]


@dataclass(frozen=True)
class Roof:
    """One limit: `run()` does `amount` of work, in bytes or floating-point operations."""

    name: str
    amount: float
    run: Callable[[], None]


def build(compiler: str = "c++") -> ctypes.CDLL:
    """Compile roofs.cpp for this processor and load it."""
    source = Path(__file__).with_name("roofs.cpp")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "roofs.so"
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))


def roofs(size: int = 256 << 20) -> list[Roof]:
    """Two ways to read memory (the better one counts), fp32 multiply-add and, where there are any, pair products."""
    native = build()
    parallel_type = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )
    parallel_for = parallel_type(torch_threads()[0])
    store = Arena().take(size).fill_(1)  # on huge pages, as the packed weights are
    memory = Memory(store.data_ptr(), size // PIECES)
    rounds = ctypes.c_int64(ROUNDS)

    def roof(name: str, body: str, amount: float, count: int, context: object) -> Roof:
        function = ctypes.cast(getattr(native, body), ctypes.c_void_p)

        def run(keep: object = (native, store)) -> None:
            parallel_for(0, count, 1, function, ctypes.byref(context))

        return Roof(name, amount, run)

    threads = torch.get_num_threads()
    flops = threads * ROUNDS * native.roof_flops()
    found = [
        roof("read", "roof_read", size, PIECES, memory),
        roof("read", "roof_read_prefetched", size, PIECES, memory),
        roof("fp32", "roof_fma", flops, threads, rounds),
    ]
    for pairs in ("bf16", "int16"):
        if hasattr(native, f"roof_{pairs}"):
            found.append(roof(pairs, f"roof_{pairs}", 2 * flops, threads, rounds))
    return found
