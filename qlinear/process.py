"""Memory of this process. Part of the ground floor, which every room may import."""

import ctypes
import os
import resource
import sys


def peak_rss_bytes() -> int:
    """The largest resident set so far, in bytes (the kernel counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def trim_heap() -> None:
    """Hand freed memory back to the system: glibc keeps freed blocks of up to 32 MB, which adds up to layers."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
