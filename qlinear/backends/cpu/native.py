"""The native kernels (qlinear/csrc) as ctypes functions: finding, loading and configuring the library."""

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qlinear.backends.widths import Widths
from qlinear.errors import TargetError

if TYPE_CHECKING:
    from qlinear.backends.stack import Array

LIBRARY = Path(__file__).parents[2] / "_kernels.so"
HOW_TO_BUILD = (
    "the native kernels are not built (they need x86-64 and a C++17 compiler when the package is installed); install "
    "again with g++ or clang++ present"
)
NEWEST = "awq_decoder_copy"  # the function that came last
OLDER = "the native kernels were built from older sources than the rest of this program; install it again"
ISA_VARIABLE = "RUN_AWQ_ISA"
ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx")


class Weight(ctypes.Structure):
    """struct awq_weight; the memory it points to has to outlive it."""

    _fields_ = [
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("group_size", ctypes.c_int32),
        ("int8", ctypes.c_int32),
    ]


_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_SIGNATURES = {
    "awq_isa": (ctypes.c_char_p, []),
    "awq_select_isa": (_INT32, [ctypes.c_char_p]),
    "awq_op_count": (_INT32, []),
    "awq_op_name": (ctypes.c_char_p, [_INT32]),
    "awq_op_isa": (ctypes.c_char_p, [_INT32]),
    "awq_set_threads": (None, [_POINTER, _POINTER, _INT32]),
    "awq_threads": (_INT32, []),
    "awq_use_huge_pages": (None, [_POINTER, _INT64]),
    "awq_packed_bytes": (_INT64, [_INT64, _INT64, _INT32, _INT32]),
    "awq_pack": (None, [_POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT32, _INT32, _POINTER]),
    "awq_to_bytes": (None, [_POINTER, _INT64, _INT64, _POINTER, _POINTER]),
    "awq_from_bytes": (None, [_POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER]),
    "awq_is_finite": (_INT32, [_POINTER, _INT64]),
    "awq_unpack": (None, [_POINTER, _POINTER, _POINTER, _POINTER]),
    "awq_linear": (_INT32, [_POINTER, _POINTER, _INT64, _INT64, _INT32, _POINTER]),
}


def is_built() -> bool:
    return LIBRARY.exists()


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded once. Its parallel loops are on torch's threads where torch is loaded, by whoever calls:
    the number holds that torch was told; else on threads of its own until `use_torch_threads`.

    Raises `TargetError` where it was not built, or not since functions came or changed.
    """
    if not is_built():
        raise TargetError(HOW_TO_BUILD)
    loaded = ctypes.CDLL(str(LIBRARY))
    if not hasattr(loaded, NEWEST):
        raise TargetError(OLDER)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if "torch" in sys.modules:
        _share_threads(loaded)
    else:
        loaded.awq_set_threads(None, None, processors())
    return loaded


def processors() -> int:
    """How many threads there are to be: OMP_NUM_THREADS, which other libraries go by too, or what this process has."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_torch_threads() -> None:
    """Have parallel loops run on the threads that torch has: two pools would be in each other's way."""
    _share_threads(library())


def _share_threads(loaded: ctypes.CDLL) -> None:
    import torch

    loaded.awq_set_threads(*torch_threads(), torch.get_num_threads())


def set_threads(count: int) -> None:
    """Have everything run on so many threads: this library, and torch, whether or not it is loaded yet."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    elif is_built():
        library().awq_set_threads(None, None, count)


def threads() -> int:
    """How many threads work at a time."""
    if is_built():
        return library().awq_threads()
    import torch

    return torch.get_num_threads()


def torch_threads() -> tuple[int | None, int | None]:
    """Addresses of `torch_parallel_for` and `torch_get_num_threads`, which torch exports in plain C since 2.10."""
    import torch

    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = torch_cpu.torch_parallel_for, torch_cpu.torch_get_num_threads
    except (OSError, AttributeError):
        return None, None
    return tuple(ctypes.cast(function, _POINTER).value for function in functions)


def select_isa(isa: str | None = None) -> str:
    """Use instruction set `isa` (default: RUN_AWQ_ISA, else the best there is) from now on, and return its name.

    The choice holds for the whole process; the best is not always the highest (csrc/x86/processor.cpp). Raises
    `TargetError` where `isa` is unknown or this machine lacks it.
    """
    wanted = isa if isa is not None else os.environ.get(ISA_VARIABLE, "")
    if wanted and wanted not in ISAS:
        raise TargetError(f"{ISA_VARIABLE}={wanted} is not an instruction set; use one of {', '.join(ISAS)}")
    if library().awq_select_isa(wanted.encode()) != 0:
        found = ", ".join(available_isas())
        raise TargetError(f"{ISA_VARIABLE}={wanted} is not available on this machine, which has {found}")
    return library().awq_isa().decode()


def code_name(int8: bool, widths: Widths = Widths()) -> str:
    """Select the instruction set, and say what runs on it as results do. Raises as `select_isa` does."""
    parts = [f"cpu/{select_isa()}"] + ["int8"] * int8
    parts += [f"{name}{bits}" for name, bits in (("kv", widths.kv), ("head", widths.head)) if bits != 16]
    return " ".join(parts)


def available_isas() -> tuple[str, ...]:
    """The instruction sets this machine has, lowest first; the selection stays as it was."""
    current = library().awq_isa()
    found = tuple(isa for isa in ISAS if library().awq_select_isa(isa.encode()) == 0)
    library().awq_select_isa(current)
    return found


def address(array: "Array") -> int:
    """Where an array of numpy's begins, or a tensor."""
    return array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data
