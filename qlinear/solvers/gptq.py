"""Error compensation: each column's rounding error is made up for by the columns not rounded yet.

GPTQ (Frantar et al., arXiv 2210.17323) with the columns in order of falling activation and static groups: scales and
zero points are settled first, so the order never shows in what is stored. Then every code is visited again while the
others stand still (coordinate descent, as QuantEase, Behdin et al., arXiv 2309.01885): the first pass could not know
how later columns would round, and this one does.
"""

import torch
from torch import Tensor

from qlinear.errors import CalibrationError
from qlinear.grid import Grid, GridWeight
from qlinear.solvers.ranges import search_ranges

# Share of the mean diagonal added to the Gram matrix, so that inputs the calibration text never moved stay solvable.
DAMPING = 0.01
BLOCK = 128  # columns worked on between two updates of all that are still to come
PANEL = 1024  # columns of an inverse triangle found at a time: what lies above the diagonal is not multiplied
PASSES = 2

# Rows are independent of each other; those solved at a time hold at most this many weights, of which half a dozen
# copies are made.
CHUNK_WEIGHTS = 2**23


def gptq(weight: Tensor, grid: Grid, gram: Tensor | None = None) -> GridWeight:
    """Codes for `weight` `(N, K)` that together err little on inputs with the Gram matrix `gram` `(K, K)`."""
    scales, zeros = search_ranges(weight, grid, gram)
    if gram is None:
        gram = torch.eye(weight.shape[1])
    order = rising(gram)
    back = torch.argsort(order)
    ordered = gram[order.unsqueeze(1), order]
    factor = inverse_factor(ordered)
    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = []
    for some in zip(weight.split(rows), scales.split(rows), zeros.split(rows), strict=True):
        columns = _Columns(*some, grid.levels, order)
        codes = revisit(columns, compensate(columns, factor), ordered)
        parts.append(codes[back].t().to(torch.uint8))
    return GridWeight(torch.cat(parts), zeros, scales, grid.bits)


def rising(gram: Tensor) -> Tensor:
    """Numbers `(K,)` of the columns by rising activation: they are worked on from the last to the first."""
    return torch.argsort(gram.diagonal(), descending=True, stable=True).flip(0)


class _Columns:
    """A weight and the scale and zero of each of its columns, in the order of `rising`.

    All are float32 `(K, N)`: a column of the weight is a row here, so that it lies in one piece.
    """

    def __init__(self, weight: Tensor, scales: Tensor, zeros: Tensor, levels: int, order: Tensor):
        group = order // (weight.shape[1] // scales.shape[1])
        self.weight = weight.float().t()[order]
        self.scales = scales.float().t()[group]
        self.zeros = zeros.float().t()[group]
        self.levels = levels

    def round(self, column: int, values: Tensor) -> Tensor:
        """The nearest codes, float32 `(N,)`, for `values` in one column."""
        return torch.div(values, self.scales[column]).add_(self.zeros[column]).round_().clamp_(0, self.levels)

    def dequantize(self, column: int | slice, codes: Tensor) -> Tensor:
        return (codes - self.zeros[column]).mul_(self.scales[column])


def inverse_factor(gram: Tensor) -> Tensor:
    """The lower triangular L with L^T L = (damped gram)^-1, float32; damped more where that fails to exist.

    Raises `CalibrationError` for a matrix that no damping helps, as one with NaN in it.

    L = C^-1 where C C^T is the damped gram. Row c of L tells how an error in column c, those after it being rounded,
    is best made up for by the columns before.
    """
    mean = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damping, damped = DAMPING, torch.empty_like(gram)
    while damping < 1e6:
        damped.copy_(gram).diagonal().add_(damping * mean)
        if cholesky(damped):
            invert_lower(damped)
            return damped
        damping *= 10
    raise CalibrationError("the inputs of a layer have no Gram matrix that can be inverted: are they finite?")


def cholesky(matrix: Tensor) -> bool:
    """Turn a symmetric `(K, K)` matrix into the lower triangular C with C C^T = matrix; False where there is none.

    In blocks, of matrix products: LAPACK's own, beyond a few blocks, depends on the number of threads.
    """
    for start in range(0, len(matrix), BLOCK):
        stop = min(start + BLOCK, len(matrix))
        panel = matrix[start:, start:stop]
        panel.addmm_(matrix[start:, :start], matrix[start:stop, :start].t(), alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(panel[: stop - start])
        if failed:
            return False
        below = matrix[stop:, start:stop]
        below.copy_(torch.linalg.solve_triangular(corner.mT, below, upper=True, left=False))
        matrix[start:stop, start:stop] = corner
    matrix.tril_()
    return True


def invert_lower(lower: Tensor) -> None:
    """Turn a lower triangular `(K, K)` matrix into its inverse, block row by block row."""
    for start in range(0, len(lower), BLOCK):
        corner = lower[start : start + BLOCK, start : start + BLOCK]
        inverse = torch.linalg.solve_triangular(corner, torch.eye(len(corner)), upper=False)
        rows = lower[start : start + BLOCK, :start]
        scaled = -inverse @ rows
        for left in range(0, start, PANEL):
            right = min(left + PANEL, start)
            torch.mm(scaled[:, left:], lower[left:start, left:right], out=rows[:, left:right])
        corner.copy_(inverse)


def compensate(columns: _Columns, factor: Tensor) -> Tensor:
    """Round column by column, taking each error out of the columns still to come; the codes, float32 `(K, N)`."""
    weight = columns.weight.clone()
    codes = torch.empty_like(weight)
    for stop in range(len(weight), 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        errors = torch.empty_like(weight[start:stop])
        for column in reversed(range(start, stop)):
            codes[column] = columns.round(column, weight[column])
            error = (weight[column] - columns.dequantize(column, codes[column])).div_(factor[column, column])
            weight[start:column].addr_(factor[column, start:column], error, alpha=-1)
            errors[column - start] = error
        weight[:start].addmm_(factor[start:stop, :start].t(), errors, alpha=-1)
    return codes


def revisit(columns: _Columns, codes: Tensor, gram: Tensor) -> Tensor:
    """Move each code to where the squared output error is least, all other codes being what they are by then."""
    live = (gram.diagonal() > 0).tolist()
    for _ in range(PASSES):
        slope = gram @ (columns.dequantize(slice(None), codes) - columns.weight)  # half the gradient of the error
        for stop in range(len(codes), 0, -BLOCK):
            start = max(stop - BLOCK, 0)
            moves = torch.zeros_like(slope[start:stop])
            for column in reversed(range(start, stop)):
                if not live[column]:
                    continue
                now = columns.dequantize(column, codes[column])
                codes[column] = columns.round(column, now - slope[column] / gram[column, column])
                move = columns.dequantize(column, codes[column]).sub_(now)
                slope[start:column].addr_(gram[column, start:column], move)
                moves[column - start] = move
            slope[:start].addmm_(gram[start:stop, :start].t(), moves)  # true for the columns still to come
    return codes
