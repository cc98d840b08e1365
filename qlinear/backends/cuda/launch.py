"""What launches kernels, and how many threads of how many blocks each gets."""

from collections.abc import Callable
from ctypes import Structure
from dataclasses import dataclass
from typing import Protocol

import torch

from qlinear.backends.cuda.structs import DEPTH, DEPTH_OF_TWO, RECORD, STAGE, TILE
from qlinear.backends.cuda.weight import CudaWeight, tiles

WARP = 32
PACKING_WARPS = 8


@dataclass(frozen=True)
class Grid:
    """blocks and the threads of each; shared: bytes of shared memory a block; early: whether a launch may begin before
    the one before it has ended.
    """

    blocks: int
    threads: int
    shared: int = 0
    early: bool = False


class Launcher(Protocol):
    """device: where memory is; name: what results call it; processors: multiprocessors of the GPU; shared_memory: bytes
    that the blocks on one of them may have together.
    """

    device: torch.device
    name: str
    processors: int
    shared_memory: int

    def launch(self, kernel: str, job: Structure, grid: Grid) -> None:
        """Run a kernel of qlinear/csrc/cuda by its name, after what was launched before on torch's current stream."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """`run` as something that can be called again and again, its launches all at once where the GPU can do that."""

    def finish(self) -> None:
        """Wait for all that was launched."""


RESERVED = 1024  # bytes of shared memory that every block takes besides
WARPS = 8  # of a block, at most
TOGETHER = 2  # blocks on one multiprocessor, at most


def suffix(weight: CudaWeight) -> str:
    """Of the kernels for a weight's bits and groups."""
    return f"{weight.bits}_fine" if weight.group_size < 64 else f"{weight.bits}"


def ring_bytes(weight: CudaWeight, parts: int) -> int:
    """Shared memory of a warp for its copies of `parts` weights side by side."""
    stage = STAGE * TILE * weight.bits // 8 + RECORD * (STAGE // min(64, weight.group_size))
    return (DEPTH if parts == 1 else DEPTH_OF_TWO) * parts * stage


def stream_grid(launcher: Launcher, weight: CudaWeight, n: int, parts: int, rows: int) -> Grid:
    """For a kernel that streams `parts` weights of `n` rows each for at most `rows` rows of activations.

    Blocks stay and take tile after tile, as many as fit on the GPU at once.
    """
    stages = -(-weight.shape[1] // STAGE)
    warps = min(WARPS, stages)
    row = stages * STAGE * 2 if rows == 1 else 0
    shared = row + warps * ring_bytes(weight, parts) + 2 * warps * parts * TILE * rows * 4
    together = max(1, min(TOGETHER, launcher.shared_memory // (shared + RESERVED)))
    return Grid(min(tiles(n), together * launcher.processors), warps * WARP, shared, early=True)


def unit_grid(weight_tiles: int, k: int) -> Grid:
    """For a kernel with a warp a unit."""
    items = weight_tiles * -(-k // 64)
    return Grid(-(-items // PACKING_WARPS), PACKING_WARPS * WARP)
