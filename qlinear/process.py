"""Memory of this process. Part of the ground floor, which every room may import."""

import ctypes
import mmap
import os
import resource
import sys
from pathlib import Path

from qlinear.errors import OptionError

# What libraries want for themselves beside the tensors.
MARGIN = 2**27


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux not getrusage's figure, which begins with what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes


def available_bytes() -> int | None:
    """Memory that can be had without taking any from others, in bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def trim_heap() -> None:
    """Hand freed memory back to the system: glibc keeps freed blocks of up to 32 MB, which adds up to layers."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def check_room(size: int) -> None:
    """Raise `MemoryError` unless `size` bytes, and what libraries want beside them, can be had; none are taken.

    Native libraries do not say that there is no memory, they die of it: MKL's products of an invalid address, and
    safetensors aborts. Under a limit on the address space it is seen here first; nothing else lets itself be asked.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    try:
        mmap.mmap(-1, size + MARGIN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{(size + MARGIN) / 1e9:.2g} GB more are needed here and not to be had") from error


def rank_and_size() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun and other launchers say; (0, 1) where nobody says.

    Raises `OptionError` for what makes no sense.
    """
    size, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if not (size.isdecimal() and rank.isdecimal() and int(rank) < max(int(size), 1)):
        raise OptionError(f"RANK={rank[:20]!r} and WORLD_SIZE={size[:20]!r} say no process of several; unset them")
    return int(rank), max(int(size), 1)
