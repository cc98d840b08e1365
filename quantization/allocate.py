"""Bits and group sizes under a budget: where a bit does most good, it is spent first."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from qlinear.errors import OptionError
from qlinear.grid import Grid


@dataclass(frozen=True)
class Share:
    """Linears that are put on one grid. weights: how many they have; costs: of each grid they could be put on."""

    linears: tuple[str, ...]
    weights: int
    costs: dict[Grid, float]

    def steps(self) -> list[tuple[float, int, Grid]]:
        """From the grid of fewest bits upward: (cost saved by a bit, bits more than the step before, grid).

        Only grids that save more by a bit than those after them are among them (the lower convex hull of cost over
        bits), so that steps taken greedily are taken in order; the first is free to take and saves everything.
        """
        offers = sorted(self.costs, key=lambda grid: (grid.bits_per_weight, self.costs[grid]))
        hull = [(float("inf"), self._bits(offers[0]), offers[0])]
        while True:
            last, cost = hull[-1][2], self.costs[hull[-1][2]]
            better = [grid for grid in offers if self._bits(grid) > self._bits(last) and self.costs[grid] < cost]
            if not better:
                return hull
            saved = {grid: (cost - self.costs[grid]) / (self._bits(grid) - self._bits(last)) for grid in better}
            best = max(better, key=saved.__getitem__)
            hull.append((saved[best], self._bits(best) - self._bits(last), best))

    def _bits(self, grid: Grid) -> int:
        return round(self.weights * grid.bits_per_weight)


def allocate(shares: Sequence[Share], bits_per_weight: float) -> dict[str, Grid]:
    """The grid of each linear, by name: the least sum of costs that `bits_per_weight`, all together, come near to.

    Of the convex hulls the greedy choice is optimal up to the last step that the budget has room for (Everett 1963,
    generalized Lagrange multipliers). Raises `OptionError` where even the fewest bits are more.
    """
    left = bits_per_weight * sum(share.weights for share in shares)
    hulls = [share.steps() for share in shares]
    left -= sum(hull[0][1] for hull in hulls)
    if left < 0:
        least = sum(hull[0][1] for hull in hulls) / sum(share.weights for share in shares)
        raise OptionError(f"`bits_per_weight={bits_per_weight:g}` has to be {least:.3f} at least: the layers need that")
    taken = [0] * len(hulls)
    waiting = [(-hull[1][0], index) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, index = heapq.heappop(waiting)
        hull, step = hulls[index], taken[index] + 1
        if hull[step][1] > left:
            continue
        left -= hull[step][1]
        taken[index] = step
        if step + 1 < len(hull):
            heapq.heappush(waiting, (-hull[step + 1][0], index))
    return {
        name: hull[step][2] for share, hull, step in zip(shares, hulls, taken, strict=True) for name in share.linears
    }
