"""How codes are chosen on the grid. A solver is one function and one line in `SOLVERS`."""

from typing import Protocol

from torch import Tensor

from qlinear import grid
from qlinear.grid import GridWeight


class Solver(Protocol):
    def __call__(self, weight: Tensor, bits: int, group_size: int) -> GridWeight:
        """Put a float weight `(N, K)` on the grid."""


def rtn(weight: Tensor, bits: int, group_size: int) -> GridWeight:
    """Round to nearest: every weight takes the closest point of the grid that spans its group."""
    scales, zeros = grid.fit(weight, bits, group_size)
    return grid.encode(weight, scales, zeros, bits)


SOLVERS: dict[str, Solver] = {"rtn": rtn}
