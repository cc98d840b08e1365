"""Proposers and policies for tests of speculation: ones that are right, ones that lie, and any number at a time."""

import numpy as np

from engine.drafting import Draft
from engine.lookup import Lookup
from tests.tiny import VOCAB


class Always:
    """A policy that has a number of tokens proposed, whatever comes of it."""

    def __init__(self, count):
        self.counted = count
        self.passes = []  # tokens proposed in each
        self.learned = []  # (proposed, right) of each that proposed some

    def count(self, kind, most, credit, behind):
        return min(self.counted, most)

    def catching_up(self, behind):
        return 0.0

    def cost(self, proposed):
        return 1.0

    def took(self, proposed, reading, proposing):
        self.passes.append(proposed)

    def learn(self, kind, proposed, accepted):
        self.learned.append((proposed, accepted))


class Knowing:
    """Knows how a text goes on, and lies about some of its tokens: one in `lies` draws, by a seed; 0: about none."""

    kinds = 1

    def __init__(self, whole, lies=0, seed=0):
        self.whole, self.lies, self.random = np.asarray(whole, np.int64), lies, np.random.default_rng(seed)

    def find(self, text):
        return 0 if len(text) < len(self.whole) else None

    def behind(self, text):
        return 0

    def propose(self, text, count):
        tokens = self.whole[len(text) : len(text) + count].copy()
        if self.lies:
            wrong = self.random.random(len(tokens)) < 1 / self.lies
            tokens[wrong] = (tokens[wrong] + self.random.integers(1, VOCAB, int(wrong.sum()))) % VOCAB
        return tokens


def always(count, proposer=None):
    """A draft of so many tokens a pass, and its policy."""
    policy = Always(count)
    return Draft(proposer or Lookup(), policy), policy
