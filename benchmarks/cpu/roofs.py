"""The machine's limits at the thread count in use: bytes read and multiply-adds done a second, by roofs.cpp."""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.cpu.report import Limit, Limits
from qlinear.backends.cpu.memory import huge_pages
from qlinear.backends.cpu.native import torch_threads

PIECES, ROUNDS = 64, 2_000_000  # a few milliseconds, on which a moment's wait for a core shows little
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-march=native", "-ffp-contract=fast", "-Wno-psabi"]


class Memory(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_void_p), ("piece", ctypes.c_int64)]


@dataclass(frozen=True)
class Roof:
    """One way to a limit: `run()` does `amount` of work, in bytes or floating-point operations."""

    limit: Limit
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
    """Two ways to read memory, fp32 multiply-add and, where there are any, pair products."""
    native = build()
    parallel_type = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )
    parallel_for = parallel_type(torch_threads()[0])
    store = huge_pages(size)[:size]  # as the packed weights lie
    store.fill(1)
    memory = Memory(store.ctypes.data, size // PIECES)
    rounds = ctypes.c_int64(ROUNDS)

    def roof(limit: Limit, body: str, amount: float, count: int, context: object) -> Roof:
        function = ctypes.cast(getattr(native, body), ctypes.c_void_p)

        def run(keep: object = (native, store)) -> None:
            parallel_for(0, count, 1, function, ctypes.byref(context))

        return Roof(limit, amount, run)

    threads = torch.get_num_threads()
    operations = threads * ROUNDS * native.roof_flops()
    found = [
        roof(Limit.READ, "roof_read", size, PIECES, memory),
        roof(Limit.READ, "roof_read_prefetched", size, PIECES, memory),
        roof(Limit.FP32, "roof_fma", operations, threads, rounds),
    ]
    for limit, body, times in (
        (Limit.BF16, "roof_bf16", 2),
        (Limit.INT16, "roof_int16", 2),
        (Limit.INT8, "roof_int8", 4),
    ):
        if hasattr(native, body):
            found.append(roof(limit, body, times * operations, threads, rounds))
    return found


def limits_of(found: list[Roof], times: list[list[float]]) -> Limits:
    """times: of each roof. The better one of two ways to a limit counts."""
    rates: dict[Limit, float] = {}
    for roof, taken in zip(found, times, strict=True):
        rates[roof.limit] = max(rates.get(roof.limit, 0.0), roof.amount / median(taken) / 1e9)
    return Limits(rates)
