"""What a lookup finds, against one that tries every match by hand."""

import numpy as np
import pytest

from engine.lookup import LONGEST, Lookup


def by_hand(text, count):
    """(tokens that match, what is proposed): of all earlier places the longest match, of equal ones the last."""
    best, source = 0, None
    for end in range(1, len(text)):
        matched = 0
        while matched < min(end, LONGEST) and text[end - 1 - matched] == text[len(text) - 1 - matched]:
            matched += 1
        if matched and matched >= best:
            best, source = matched, end
    if source is None:
        return None, None
    followed = list(text[source:])
    while len(followed) < count:
        followed += text[source:]
    return best, followed[:count]


@pytest.mark.parametrize("distinct", [1, 2, 3, 6, 30])
def test_as_by_hand(distinct):
    random, found = np.random.default_rng(distinct), set()
    for length in (1, 2, 3, 5, 9, 24, 70):
        for count in (1, 4, 7):
            text = random.integers(0, distinct, length)
            lookup = Lookup()
            kind, (matched, tokens) = lookup.find(text), by_hand(text.tolist(), count)
            found.add(matched)
            if matched is None:
                assert kind is None
                continue
            assert kind == matched - 1 < Lookup.kinds
            assert lookup.propose(text, count).tolist() == tokens
    assert len(found) > (1 if distinct == 30 else 2)


def test_the_longest_match_before_the_latest():
    text = np.array([7, 1, 2, 50, 3, 2, 60, 7, 1, 2])
    lookup = Lookup()
    assert lookup.find(text) == 3 - 1 and lookup.propose(text, 2).tolist() == [50, 3]
    assert lookup.find(text[1:7]) is None and lookup.find(text[:1]) is None


def test_of_equal_matches_the_latest():
    text = np.array([5, 1, 6, 1, 8, 1])
    lookup = Lookup()
    assert lookup.find(text) == 0 and lookup.propose(text, 3).tolist() == [8, 1, 8]
