"""Peak memory of this process."""

import resource
import sys


def peak_rss_bytes() -> int:
    """The largest resident set so far, in bytes (the kernel counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
