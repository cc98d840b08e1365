"""Bits under a budget, beside every choice there is."""

import itertools
import random

import pytest

from qlinear.errors import OptionError
from qlinear.grid import Grid
from quantization.allocate import Share, allocate

GRIDS = [Grid(bits, size) for bits in (3, 4) for size in (32, 64, 256)]


def drawn(count: int, seed: int) -> list[Share]:
    numbers = random.Random(seed)
    return [
        Share((f"a{index}", f"b{index}"), 256 * numbers.randint(1, 9), {grid: numbers.random() for grid in GRIDS})
        for index in range(count)
    ]


def spent(shares: list[Share], chosen) -> tuple[float, float]:
    """(bits, cost) of a grid for each share."""
    pairs = list(zip(shares, chosen, strict=True))
    bits = sum(share.weights * grid.bits_per_weight for share, grid in pairs)
    return bits, sum(share.costs[grid] for share, grid in pairs)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_better_fits(seed):
    """Of all choices of five shares, none with as few bits costs much less; what is left over is another matter."""
    shares = drawn(5, seed)
    weights = sum(share.weights for share in shares)
    for asked in (3.2, 3.5, 3.9, 4.3, 4.9):
        found = allocate(shares, asked)
        assert all(found[f"a{index}"] == found[f"b{index}"] for index in range(5)) and len(found) == 10
        bits, cost = spent(shares, [found[f"a{index}"] for index in range(5)])
        assert bits <= asked * weights
        others = (spent(shares, chosen) for chosen in itertools.product(GRIDS, repeat=5))
        best = min(other for other_bits, other in others if other_bits <= bits)
        assert cost <= best * 1.25, "a greedy choice may miss the least by a step"
        if asked == 4.9:  # all that each would like is there
            assert cost == pytest.approx(sum(min(share.costs.values()) for share in shares))


def test_a_step_that_does_not_fit_leaves_room_for_others():
    large = Share(("large",), 10_240, {Grid(3, 64): 9.0, Grid(4, 64): 0.0})
    small = Share(("small",), 256, {Grid(3, 64): 1.0, Grid(4, 64): 0.9})
    found = allocate([large, small], Grid(3, 64).bits_per_weight + 0.05)
    assert found == {"large": Grid(3, 64), "small": Grid(4, 64)}


def test_of_equal_costs_the_fewest_bits():
    same = Share(("same",), 256, dict.fromkeys(GRIDS, 0.5))
    assert allocate([same], 4.6) == {"same": Grid(3, 256)}


def test_fewer_bits_than_there_can_be():
    shares = [Share(("a",), 64, {Grid(3, 32): 1.0}), Share(("b",), 192, {Grid(4, 64): 1.0})]
    least = (64 * Grid(3, 32).bits_per_weight + 192 * Grid(4, 64).bits_per_weight) / 256
    with pytest.raises(OptionError, match=f"^`bits_per_weight=3.1` has to be {least:.3f} at least"):
        allocate(shares, 3.1)
