"""Round to nearest: every weight takes the closest point of the grid that spans its group."""

from torch import Tensor

from qlinear.grid import Grid, GridWeight


def rtn(weight: Tensor, grid: Grid, gram: Tensor | None = None) -> GridWeight:
    """Nearest codes for `weight` `(N, K)`; what the inputs look like is of no account."""
    return grid.quantize(weight, *grid.fit(weight))
