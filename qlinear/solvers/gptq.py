"""Error compensation: each column's rounding error is made up for by the columns not rounded yet.

GPTQ (Frantar et al., arXiv 2210.17323) with the columns in order of falling activation and static groups: scales and
zero points are settled first, so the order never shows in what is stored. Then every code is visited again while the
others stand still (coordinate descent, as QuantEase, Behdin et al., arXiv 2309.01885): the first pass could not know
how later columns would round, and this one does.
"""

import torch
from torch import Tensor

from qlinear.grid import GridWeight
from qlinear.solvers.ranges import search_ranges

# Share of the mean diagonal added to the Gram matrix, so that inputs the calibration text never moved stay solvable.
DAMPING = 0.01
BLOCK = 128  # columns worked on between two updates of all that follow
PASSES = 2

# Rows are independent of each other; those solved at a time hold at most this many weights, of which half a dozen
# copies are made.
CHUNK_WEIGHTS = 2**23


def gptq(weight: Tensor, bits: int, group_size: int, gram: Tensor | None = None) -> GridWeight:
    """Codes for `weight` `(N, K)` that together err little on inputs with the Gram matrix `gram` `(K, K)`."""
    scales, zeros = search_ranges(weight, bits, group_size, gram)
    if gram is None:
        gram = torch.eye(weight.shape[1])
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    back = torch.argsort(order)
    ordered = gram[order][:, order]
    factor = inverse_factor(ordered)
    rows = max(1, CHUNK_WEIGHTS // weight.shape[1])
    parts = []
    for some in zip(weight.split(rows), scales.split(rows), zeros.split(rows), strict=True):
        columns = _Columns(*some, bits, order)
        codes = revisit(columns, compensate(columns, factor), ordered)
        parts.append(codes[back].t().to(torch.uint8))
    return GridWeight(torch.cat(parts), zeros, scales, bits)


class _Columns:
    """A weight and the scale and zero of each of its columns, in the order they are rounded in.

    All are float32 `(K, N)`: a column of the weight is a row here, so that it lies in one piece.
    """

    def __init__(self, weight: Tensor, scales: Tensor, zeros: Tensor, bits: int, order: Tensor):
        group = order // (weight.shape[1] // scales.shape[1])
        self.weight = weight.float().t()[order]
        self.scales = scales.float().t()[group]
        self.zeros = zeros.float().t()[group]
        self.levels = 2**bits - 1

    def round(self, column: int, values: Tensor) -> Tensor:
        """The nearest codes, float32 `(N,)`, for `values` in one column."""
        return torch.div(values, self.scales[column]).add_(self.zeros[column]).round_().clamp_(0, self.levels)

    def decode(self, column: int | slice, codes: Tensor) -> Tensor:
        return (codes - self.zeros[column]).mul_(self.scales[column])


def inverse_factor(gram: Tensor) -> Tensor:
    """The upper triangular U with U^T U = (damped gram)^-1, float32; damped more where that fails to exist.

    U = R^-1 where R R^T is the damped gram and R upper triangular: the Cholesky factor from the last column back.
    """
    mean = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damping = DAMPING
    while True:
        flipped = gram.flip(0, 1)
        flipped.diagonal().add_(damping * mean)
        lower = cholesky(flipped)
        if lower is not None:
            return torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(len(gram)), upper=True)
        damping *= 10


def cholesky(matrix: Tensor) -> Tensor | None:
    """The lower triangular L with L L^T = `matrix`, which is overwritten, or None where there is none.

    In blocks, of matrix products: LAPACK's own, beyond a few blocks, depends on the number of threads.
    """
    for start in range(0, len(matrix), BLOCK):
        stop = start + BLOCK
        corner, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        if failed:
            return None
        below, rest = matrix[stop:, start:stop], matrix[stop:, stop:]
        below.copy_(torch.linalg.solve_triangular(corner.mT, below, upper=True, left=False))
        rest.addmm_(below, below.mT, alpha=-1)
        matrix[start:stop, start:stop] = corner
    return matrix.tril_()


def compensate(columns: _Columns, factor: Tensor) -> Tensor:
    """Round column by column, taking each error out of the columns that follow; the codes, float32 `(K, N)`."""
    weight = columns.weight.clone()
    codes = torch.empty_like(weight)
    for start in range(0, len(weight), BLOCK):
        stop = min(start + BLOCK, len(weight))
        errors = torch.empty_like(weight[start:stop])
        for column in range(start, stop):
            codes[column] = columns.round(column, weight[column])
            error = (weight[column] - columns.decode(column, codes[column])).div_(factor[column, column])
            weight[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        weight[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return codes


def revisit(columns: _Columns, codes: Tensor, gram: Tensor) -> Tensor:
    """Move each code to where the squared output error is least, all other codes being what they are by then."""
    live = (gram.diagonal() > 0).tolist()
    for _ in range(PASSES):
        slope = gram @ (columns.decode(slice(None), codes) - columns.weight)  # half the gradient of the error
        for start in range(0, len(codes), BLOCK):
            stop = min(start + BLOCK, len(codes))
            moves = torch.zeros_like(slope[start:stop])
            for column in range(start, stop):
                if not live[column]:
                    continue
                now = columns.decode(column, codes[column])
                codes[column] = columns.round(column, now - slope[column] / gram[column, column])
                move = columns.decode(column, codes[column]).sub_(now)
                slope[column + 1 : stop].addr_(gram[column, column + 1 : stop], move)
                moves[column - start] = move
            slope[stop:].addmm_(gram[start:stop, stop:].t(), moves)  # true for the columns still to come
    return codes
