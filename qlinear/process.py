"""Memory of this process. Part of the ground floor, which every room may import."""

import ctypes
import os
import resource
import sys
from pathlib import Path


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


def trim_heap() -> None:
    """Hand freed memory back to the system: glibc keeps freed blocks of up to 32 MB, which adds up to layers."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
