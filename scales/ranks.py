"""Several processes that quantize one model together, as the rest of the code sees them; here, the one that is alone.

Every rank makes the same calls in the same order. What they share is shared so that it comes out the same: each number
is computed by one rank as it would be by one alone, and what is added up is added up in an order that has nothing to do
with how many ranks there are.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(costs: Sequence[float], ranks: int) -> list[int]:
    """Which rank does each piece of work: the costliest first, each by the rank that has least to do so far."""
    owners, load = [0] * len(costs), [0.0] * ranks
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        owners[index] = min(range(ranks), key=lambda rank: load[rank])
        load[owners[index]] += costs[index]
    return owners


class Ranks:
    """One process alone. rank: this one's number; size: how many there are."""

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether it is this one that reads, decides, writes and tells for all."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Which of `count` things in a row are this rank's: every `size`-th one."""
        return range(self.rank, count, self.size)

    def in_turn(self, mine: Iterable[T], count: int) -> list[T]:
        """What the ranks have made of the `mine` of `count` things, in the order of the things; on every rank."""
        return list(mine)

    def swap(self, mine: T) -> list[T]:
        """What each rank has, in the order of the ranks; on every rank."""
        return [mine]

    def told(self, value: T) -> T:
        """What the leading rank has, on every rank."""
        return value
