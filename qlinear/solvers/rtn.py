"""Round to nearest: every weight takes the closest point of the grid that spans its group."""

from torch import Tensor

from qlinear import grid
from qlinear.grid import GridWeight


def rtn(weight: Tensor, bits: int, group_size: int, gram: Tensor | None = None) -> GridWeight:
    """Nearest codes for `weight` `(N, K)`; what the inputs look like is of no account."""
    scales, zeros = grid.fit(weight, bits, group_size)
    return grid.quantize(weight, scales, zeros, bits)
