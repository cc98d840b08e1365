"""Several processes that quantize one model together, as the rest of the code sees them; here, the one that is alone.

Every rank makes the same calls in the same order. What they share is shared so that it comes out the same: each number
is computed by one rank as it would be by one alone, and what is added up is added up in an order that has nothing to do
with how many ranks there are.
"""

from collections.abc import Callable, Iterator, Sequence
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
        """Which of `count` samples are this rank's: every `size`-th one."""
        return range(self.rank, count, self.size)

    def turns(self, count: int) -> int:
        """How many samples a rank has at most."""
        return -(-count // self.size)

    def each(self, mine: T) -> Iterator[T]:
        """What each rank has, in the order of the ranks, one at a time; on every rank, to the end."""
        yield mine

    def swap(self, mine: T) -> list[T]:
        """What each rank has, in the order of the ranks; on every rank."""
        return list(self.each(mine))

    def told(self, value: T) -> T:
        """What the leading rank has, on every rank."""
        return value

    def share(self, costs: Sequence[float], do: Callable[[int], T]) -> list[T]:
        """What `do` makes of each number below `len(costs)`, each done by one rank; on every rank."""
        if self.size == 1:
            return [do(index) for index in range(len(costs))]
        owners = spread(costs, self.size)
        done = self.swap({index: do(index) for index, owner in enumerate(owners) if owner == self.rank})
        together = {index: value for part in done for index, value in part.items()}
        return [together[index] for index in range(len(costs))]

    def in_order(self, mine: Sequence[T], count: int) -> list[T]:
        """What the ranks have for each of the first `count` samples; on every rank. mine: of this rank's samples."""
        parts = self.swap(list(mine[: len(self.mine(count))]))
        return [parts[index % self.size][index // self.size] for index in range(count)]


ALONE = Ranks()
