"""What launches kernels, and how many threads of how many blocks each gets."""

from ctypes import Structure
from dataclasses import dataclass
from typing import Protocol

import torch

from qlinear.backends.cuda.structs import DEPTH, RECORD, STAGE, TILE
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


RESERVED = 1024  # bytes of shared memory that every block takes besides
MOST_WARPS, FEW_WARPS = 8, 4  # of a block; of one of many


def suffix(weight: CudaWeight) -> str:
    """Of the kernels for a weight's bits and groups."""
    return f"{weight.bits}_fine" if weight.group_size < 64 else f"{weight.bits}"


def ring_bytes(weight: CudaWeight) -> int:
    """Shared memory of a warp for its copies."""
    return DEPTH * (STAGE * TILE * weight.bits // 8 + RECORD * (STAGE // min(64, weight.group_size)))


def stream_grid(launcher: Launcher, weight: CudaWeight, n: int, parts: int, rows: int, early: bool = False) -> Grid:
    """For a kernel that streams `parts` weights of `n` rows for 1, 8 or 16 rows of activations.

    Blocks stay and take tile after tile, as many as fit on the GPU at once. Where there are few tiles more warps share
    the columns of each.
    """
    stages = -(-weight.shape[1] // STAGE)
    few_tiles = tiles(n) < 4 * launcher.processors
    warps = min(MOST_WARPS if few_tiles else FEW_WARPS, stages)
    row = stages * STAGE * 2 if rows == 1 else 0
    sums = 2 * warps * parts * TILE * rows * 4
    shared = row + warps * parts * ring_bytes(weight) + sums
    together = max(1, launcher.shared_memory // (shared + RESERVED))
    return Grid(min(tiles(n), together * launcher.processors), warps * WARP, shared, early)


def unit_grid(weight_tiles: int, k: int) -> Grid:
    """For a kernel with a warp a unit."""
    items = weight_tiles * -(-k // 64)
    return Grid(-(-items // PACKING_WARPS), PACKING_WARPS * WARP)
