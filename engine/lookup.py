"""Tokens proposed from the text itself: what followed the last ones when they were there before.

As in prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding) and llama.cpp's lookup, with
the longest match first and, of equal ones, the latest.
"""

import numpy as np

# Tokens of a match that are looked at: more of them make no match surer.
LONGEST = 8


class Lookup:
    """`engine.proposals.Proposer`."""

    kinds = LONGEST

    def __init__(self) -> None:
        self._source = 0  # where in the text the token stands that followed what matches

    def find(self, text: np.ndarray) -> int | None:
        """How many tokens match, less one."""
        ends = np.flatnonzero(text[:-1] == text[-1])
        if not len(ends):
            return None
        matched = 1
        while matched < LONGEST:
            longer = ends[ends >= matched]
            longer = longer[text[longer - matched] == text[-1 - matched]]
            if not len(longer):
                break
            ends, matched = longer, matched + 1
        self._source = int(ends[-1]) + 1
        return matched - 1

    def behind(self, text: np.ndarray) -> int:
        return 0

    def catch_up(self, text: np.ndarray) -> None: ...

    def propose(self, text: np.ndarray, count: int) -> np.ndarray:
        """Where the text ends before there are as many, what is proposed goes on as it began: a loop is one match."""
        return text[self._source + np.arange(count) % (len(text) - self._source)]
