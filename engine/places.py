"""Which text is in which slot of a decoder, and what slots still hold of texts before."""

from dataclasses import dataclass

import numpy as np

# Tokens that have to be in common for a copy of them to be worth its while.
WORTH_COPYING = 16


@dataclass(frozen=True)
class Taken:
    """slot: for a text; known: how many of its first tokens slot `source` holds, which may be the same."""

    slot: int
    source: int
    known: int


class Places:
    """Slots, each free or not. Among free ones the one is taken that was free for the longest time."""

    def __init__(self, slots: int):
        self._held = [np.empty(0, np.int64) for _ in range(slots)]
        self._free = list(range(slots))  # in the order in which they became free

    def take(self, prompt: np.ndarray) -> Taken:
        """A free slot, of which there has to be one, for a prompt `(length,)`, of which a token is left to be read.

        What most of it is already in, is its slot, if it is free and as much as half of what it holds is this prompt's;
        else that much is to be copied, so that others still find what they hold.
        """
        common = [min(in_common(held, prompt), len(prompt) - 1) for held in self._held]
        source = int(np.argmax(common))
        known, oldest = common[source], self._free[0]
        if source in self._free and (2 * known >= len(self._held[source]) or oldest == source):
            slot = source
        elif known >= common[oldest] + WORTH_COPYING:
            slot = oldest
        else:
            slot = source = max(self._free, key=lambda one: common[one])
            known = common[slot]
        self._free.remove(slot)
        self._held[slot] = prompt[:known]
        return Taken(slot, source, known)

    def hold(self, slot: int, tokens: np.ndarray) -> None:
        self._held[slot] = tokens

    def forget(self, slot: int) -> None:
        self._held[slot] = np.empty(0, np.int64)

    def free(self, slot: int) -> None:
        """Slot -1: of a text that never had one."""
        if slot >= 0:
            self._free.append(slot)


def in_common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two texts have in common from their beginnings on."""
    least = min(len(first), len(second))
    differ = np.flatnonzero(first[:least] != second[:least])
    return int(differ[0]) if len(differ) else least
