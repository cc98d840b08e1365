"""What proposing is worth, on the test's own clock: gains where proposals are right, hardly a loss elsewhere."""

import random

import numpy as np
import pytest

from engine import drafting
from engine.drafting import STEADY, Draft
from engine.worth import AGAIN, MOST, REFRESHED, TRIED, Worth
from tests.engine.drafts import Knowing

# Passes over 1, 2, ... 8 rows, in passes over one: of kernels with wide blocks, of narrow ones, and of none.
COSTS = {
    "wide": [1, 1.05, 1.15, 1.3, 1.65, 1.85, 2.05, 2.3],
    "narrow": [1, 1.35, 1.7, 2.0, 2.6, 3.0, 3.4, 3.8],
    "none": [1, 2, 3, 4, 5, 6, 7, 8],
}
STEP = 0.005


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(drafting, "time", made)
    return made


class Slow(Knowing):
    """Takes its time for each token that it proposes, and a third of that for one that it has to read before."""

    def __init__(self, clock, seconds, *how):
        super().__init__(*how)
        self.clock, self.seconds, self.read, self.caught_up = clock, seconds, 0, []

    def behind(self, text):
        return max(0, len(text) - 1 - self.read)

    def catch_up(self, text):
        self.caught_up.append(self.behind(text))
        self.clock.now += self.seconds / 3 * self.caught_up[-1]
        self.read = len(text) - 1

    def propose(self, text, count):
        assert self.behind(text) <= STEADY
        self.read = len(text) + count - 1
        self.clock.now += self.seconds * count
        return super().propose(text, count)


def speed(clock, draft, text, costs, noise=0.0, prompt=10):
    """How many times as fast the text is written as without; tokens proposed a pass."""
    begun, length, proposed = clock.now, prompt + 1, []
    drafted, chance = draft.for_text(), random.Random(2)
    while length < len(text):
        tokens = drafted.propose(text[:length], len(text) - length - 1)
        proposed.append(len(tokens))
        clock.now += STEP * costs[len(tokens)] * (1 + noise * chance.random())
        drafted.took()
        for row in range(len(tokens) + 1):
            right = row < len(tokens) and int(tokens[row]) == text[length]
            drafted.wrote(right)
            length += 1
            if not right or length == len(text):
                break
    plain = (len(text) - prompt - 1) * STEP * (1 + noise / 2)
    return plain / (clock.now - begun), proposed


def text_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 128, length)


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("noise", [0, 0.5])
@pytest.mark.parametrize("lies", [1, 1.3])
def test_wrong_proposals_cost_next_to_nothing(clock, costs, noise, lies):
    text = text_of(400)
    draft = Draft(Knowing(text, lies), Worth(1))
    for _ in range(3):
        found, proposed = speed(clock, draft, text, costs, noise)
        assert found > 0.97
        assert sum(proposed) > 0  # it has tried


@pytest.mark.parametrize(("costs", "least"), [("wide", 3.1), ("narrow", 1.95), ("none", 0.98)])
def test_right_ones_are_worth_what_the_passes_allow(clock, costs, least):
    text = text_of(200)
    found, proposed = speed(clock, Draft(Knowing(text), Worth(1)), text, COSTS[costs], 0.2)
    assert found > least
    assert proposed[:2] == [0, 0]  # what a plain pass takes, first of all
    assert max(proposed) == (MOST if costs != "none" else max(proposed))


def test_a_model_that_takes_long_to_propose(clock):
    """At half a pass a token, right ones are not worth their while; at a fiftieth they are."""
    text = text_of(300)
    dear, _ = speed(clock, Draft(Slow(clock, STEP, text), Worth(1)), text, COSTS["wide"])
    cheap, _ = speed(clock, Draft(Slow(clock, STEP / 50, text), Worth(1)), text, COSTS["wide"])
    assert 0.97 < dear < 1.02 and cheap > 2.9


def test_a_long_prompt_is_read_once_by_what_proposes(clock):
    """What it takes is no reason against proposals that are right."""
    text = text_of(1300)
    slow = Slow(clock, STEP / 20, text)
    found, proposed = speed(clock, Draft(slow, Worth(1)), text, COSTS["wide"], prompt=1000)
    assert len(slow.caught_up) == 1 and 1000 <= slow.caught_up[0] < 1005
    reading = 1000 / 3 * STEP / 20
    assert 299 * STEP / (299 * STEP / found - reading) > 2.2 and np.median(proposed) == MOST


@pytest.mark.parametrize("lies", [1, 0])
def test_what_is_not_worth_it_is_not_kept_up_to_date(clock, lies):
    """Reading what it has missed counts where a model is tried again, one that is wrong or one that takes too long."""
    text = text_of(1500)
    slow = Slow(clock, STEP * 0.9, text, lies)
    draft = Draft(slow, Worth(1))
    speed(clock, draft, text[:60], COSTS["wide"])
    slow.read, slow.caught_up = 0, []
    found, proposed = speed(clock, draft, text, COSTS["wide"], prompt=30)
    assert found > 0.97 and len(slow.caught_up) < 12


def test_it_comes_back_to_what_is_right_again(clock):
    class Changing(Knowing):
        def propose(self, text, count):
            tokens = super().propose(text, count)
            return (tokens + 1) % 128 if 100 <= len(text) < 300 else tokens

    text = text_of(600)
    found, proposed = speed(clock, Draft(Changing(text), Worth(1)), text, COSTS["wide"])
    assert found > 1.7
    middle = [count for count in proposed if count]
    assert sum(middle[-20:]) == pytest.approx(20 * MOST, abs=3 * MOST)


def test_what_a_plain_pass_takes_is_asked_again(clock):
    """After so many with proposals; a machine that has become slower as a whole has not changed what is worth it."""
    text = text_of(REFRESHED * (MOST + 1) + 300)
    draft = Draft(Knowing(text), Worth(1))
    _, proposed = speed(clock, draft, text, COSTS["wide"])
    assert proposed.count(0) >= 3 and proposed.index(0, 2) <= REFRESHED + 4
    _, again = speed(clock, draft, text[:300], [3 * cost for cost in COSTS["wide"]])
    assert np.mean(again) > 0.7 * MOST


def test_costs_between_measured_ones():
    worth = Worth(1)
    for seconds in (2.0, 2.0, 50.0):
        worth.took(0, seconds, 0.0)  # the middle one counts
    assert worth.cost(0) == 1 and worth.cost(1) == pytest.approx(1.12)
    worth.took(3, 4.0, 0.6)
    of_one = 0.1  # proposing, 0.2 s a token
    found = [worth.cost(count) - of_one * count for count in range(MOST + 1)]
    assert found[:4] == pytest.approx([1, 1 + 1 / 3, 1 + 2 / 3, 2]) and found[4] == pytest.approx(2.12)
    worth.took(7, 6.0, 1.4)
    assert [worth.cost(count) - of_one * count for count in (4, 5, 6, 7)] == pytest.approx([2.25, 2.5, 2.75, 3])


def test_what_is_asked_for():
    worth = Worth(2)
    assert worth.count(0, 7, 100, 0) == 0  # before anything is known
    for _ in range(2):
        worth.took(0, 1.0, 0.0)
    worth.learn(0, 7, 7)
    assert worth.count(0, 7, 100, 0) == 2  # what nobody has measured is come upon in steps
    worth.took(2, 1.2, 0.0)
    assert worth.count(0, 7, 100, 0) == 6
    worth = Worth(2)
    for _ in range(2):
        worth.took(0, 1.0, 0.0)
    assert worth.count(0, 1, 100, 0) == 1 and worth.count(0, 0, 100, 0) == 0
    assert worth.count(0, 7, 0.1, 0) == 0 and worth.count(0, 7, 0.13, 0) == 1  # the second row may cost 0.12
    for _ in range(30):
        worth.learn(1, 3, 0)
    assert worth.chance(1) < 0.05 and worth.chance(0) == pytest.approx(0.5)
    assert worth.catching_up(30) == 0  # of what proposes for nothing
    counts = [worth.count(1, 7, 100, 0) for _ in range(2 * AGAIN)]
    assert counts == ([0] * (AGAIN - 1) + [TRIED]) * 2
