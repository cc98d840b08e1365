"""How codes are chosen on the grid, one solver a file; `quantization.methods` has them by name."""

from typing import Protocol

from torch import Tensor

from qlinear.grid import Grid, GridWeight


class Solver(Protocol):
    def __call__(self, weight: Tensor, grid: Grid, gram: Tensor | None = None) -> GridWeight:
        """Put a float weight `(N, K)` on a grid.

        gram: X^T X `(K, K)` of the inputs X the weight will meet, for solvers that weigh their errors by it; without
        it all inputs count alike.
        """
