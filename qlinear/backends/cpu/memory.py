"""Memory for packed weights and caches, on huge pages."""

import mmap

import numpy as np

from qlinear.backends.cpu import native
from qlinear.errors import TargetError

HUGE_PAGE = 2 << 20
BLOCK_BYTES = 64 << 20


class Arena:
    """Memory for packed weights: blocks on huge pages, handed out in order, so that weights that are read one after
    the other also lie so. A block lives as long as any weight in it.
    """

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        """`size` bytes of uint8, uninitialized, 64-byte aligned."""
        padded = -(-size // 64) * 64
        if padded > self._free.size:
            self._free = huge_pages(max(padded, BLOCK_BYTES))
        taken, self._free = self._free[:size], self._free[padded:]
        return taken


def huge_pages(size: int) -> np.ndarray:
    """At least `size` bytes of uint8, zeros, fresh from the system.

    What the allocator has had before would stay on small pages, whatever is asked for. Raises `TargetError` where there
    is not so much.
    """
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    try:
        mapped = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise TargetError(f"{size / 1e9:.1f} GB of memory are not to be had: {error.strerror}") from error
    memory = np.frombuffer(mapped, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    native.library().awq_use_huge_pages(memory.ctypes.data + start, size)
    return memory[start : start + size]
