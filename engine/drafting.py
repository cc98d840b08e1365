"""Several tokens a pass, the same ones: some are proposed, read at once, and taken as far as the model chooses them.

Speculative decoding (Leviathan et al., arXiv 2211.17192) with proposals that are no matter of chance: a token is chosen
from the model's own logits, greedily or drawn, exactly as without, and a proposal only says which rows were read ahead.
So nothing about an answer changes, not even which tokens a seed draws, where what comes after a token has the same bits
however the text is cut into calls.
"""

import time
from dataclasses import dataclass

import numpy as np

from engine.proposals import Proposer
from engine.worth import MOST, Worth

# What may be lost where proposals are wrong: of the time of an answer, and passes at its beginning. What was gained
# before makes up for so many passes at most.
LOSS, AT_FIRST, GAINED = 0.01, 0.5, 4.0
STEADY = MOST + 1  # tokens that a proposer is behind at most, where there was a proposal in the last pass
NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Drafted:
    """Of an answer, or of several. accepted: of the tokens proposed; tokens_per_pass: of those after the prompt, None
    where there was none.
    """

    proposed: int
    accepted: int
    passes: int
    tokens_per_pass: float | None


class Drafting:
    """The passes of one answer after that of its prompt: `propose`, `took` once it is read, `wrote` for each token."""

    def __init__(self, proposer: Proposer, worth: Worth):
        self._proposer, self._worth = proposer, worth
        self._proposed = self._accepted = self._passes = self._tokens = 0
        self._kind, self._count, self._right = 0, 0, 0  # of the pass at hand: proposed, and right
        self._began = self._proposing = 0.0
        self._spent = self._lost = 0.0  # in passes over one token

    def propose(self, text: np.ndarray, most: int) -> np.ndarray:
        """Tokens, `most` at most, to be read with the last of a text `(length,)` in one pass, which begins here."""
        self._learn()
        began = time.perf_counter()
        tokens, kind = NONE, self._proposer.find(text) if most > 0 else None
        if kind is not None:
            credit, behind = LOSS * self._spent + AT_FIRST - self._lost, self._proposer.behind(text)
            count = self._worth.count(kind, most, credit, behind)
            if count and behind > STEADY:
                self._catch_up(text, behind)
                began = time.perf_counter()
            if count:
                tokens = self._proposer.propose(text, count)
            self._kind = kind
        self._count, self._right = len(tokens), 0
        self._began = time.perf_counter()
        self._proposing = self._began - began
        return tokens

    def _catch_up(self, text: np.ndarray, behind: int) -> None:
        """What is read of the text as it is found, a prompt above all, is no fault of the proposals; what is, later on,
        has to be worth it.
        """
        self._proposer.catch_up(text)
        if self._proposed:
            self._lost += self._worth.catching_up(behind)

    def took(self) -> None:
        """The pass is read."""
        self._worth.took(self._count, time.perf_counter() - self._began, self._proposing)
        self._passes += 1
        self._proposed += self._count

    def wrote(self, right: bool) -> None:
        """A token of the pass was chosen; right: it is the one that was proposed."""
        self._tokens += 1
        self._accepted += right
        self._right += right

    def _learn(self) -> None:
        """What there is to learn of the last pass."""
        if self._passes == 0:
            return
        if self._count:
            self._worth.learn(self._kind, self._count, self._right)
        cost = self._worth.cost(self._count)
        self._spent += cost
        self._lost = max(self._lost + cost - 1 - self._right, -GAINED)

    @property
    def drafted(self) -> Drafted:
        rate = self._tokens / self._passes if self._passes else None
        return Drafted(self._proposed, self._accepted, self._passes, rate)


class Draft:
    """What proposes tokens to one decoder, one text at a time; what it has learned stays for the next."""

    def __init__(self, proposer: Proposer, worth: Worth):
        self._proposer, self._worth = proposer, worth

    def for_text(self) -> Drafting:
        return Drafting(self._proposer, self._worth)


def together(parts: list[Drafted]) -> Drafted:
    """Of several answers."""
    proposed, accepted, passes = (
        sum(getattr(one, name) for one in parts) for name in ("proposed", "accepted", "passes")
    )
    tokens = sum(one.passes * one.tokens_per_pass for one in parts if one.tokens_per_pass is not None)
    return Drafted(proposed, accepted, passes, tokens / passes if passes else None)
