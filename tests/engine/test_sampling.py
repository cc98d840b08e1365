"""Sampling: what can be drawn, how often, and what is refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.sampling import sampler
from qlinear.errors import OptionError

# Of 5 tokens, out of order; as logits at temperature 1.
PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15], dtype=torch.float64)
LOGITS = (PROBABILITIES.log().float() + 7).numpy()


def frequencies(choose, draws=4000):
    counts = torch.bincount(torch.tensor([choose(LOGITS) for _ in range(draws)]), minlength=5)
    return counts.double() / draws


@pytest.mark.parametrize(
    "options, allowed",
    [
        (dict(), [0, 1, 2, 3, 4]),
        (dict(temperature=0.5), [0, 1, 2, 3, 4]),
        (dict(top_k=2), [1, 3]),
        (dict(top_k=9), [0, 1, 2, 3, 4]),
        (dict(top_p=0.65), [1, 3]),
        (dict(top_p=0.75), [1, 3, 4]),
        (dict(top_p=0.01), [1]),
        (dict(top_k=3, top_p=0.5), [1, 3]),  # 0.4 / 0.85 is less than a half
        (dict(temperature=2.0, top_k=4), [0, 1, 3, 4]),
        (dict(min_p=0.3), [1, 3, 4]),
        (dict(min_p=1.0), [1]),
        (dict(min_p=0.0), [0, 1, 2, 3, 4]),
        (dict(temperature=2.0, min_p=0.6), [1, 3, 4]),
        (dict(top_k=2, min_p=0.2), [1, 3]),
        (dict(top_p=0.75, min_p=0.5), [1, 3]),
    ],
)
def test_draws_as_often_as_likely(options, allowed):
    expected = torch.zeros(5, dtype=torch.float64)
    expected[allowed] = PROBABILITIES[allowed] ** (1 / options.get("temperature", 1.0))
    expected /= expected.sum()
    drawn = frequencies(sampler(**options))
    assert (drawn[expected == 0] == 0).all()
    assert (drawn - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("top_k, top_p", [(None, 0.05), (None, 0.9), (None, 0.999), (7, None), (300, 0.8), (9999, 0.5)])
def test_of_a_large_vocabulary_only_the_likeliest_are_drawn(monkeypatch, spread, top_k, top_p):
    """Many logits are equal; the reference sorts them all, one after the other."""
    logits = (np.random.default_rng(5).standard_normal(9999) * spread).round(1).astype(np.float32)
    order = sorted(range(9999), key=lambda token: (-logits[token], token))[:top_k]
    weights = [math.exp(float(logits[token])) for token in order]
    allowed, reached = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if top_p is None or reached < top_p * math.fsum(weights):
            allowed.append(token)
        reached += weight
    ends = iter([0.0, 1 - 2**-53])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: SimpleNamespace(random=lambda: next(ends)))
    choose = sampler(top_k=top_k, top_p=top_p)
    assert [choose(logits) for _ in range(2)] == [allowed[0], allowed[-1]]


@pytest.mark.parametrize("temperature", [1e-7, 1e-200, 1e-310, 5e-324])
@pytest.mark.parametrize("options", [{}, dict(top_k=3), dict(top_p=0.5)])
def test_next_to_no_temperature_takes_the_likeliest(temperature, options):
    logits = np.random.default_rng(7).normal(0, 20, 500).astype(np.float32)
    choose = sampler(temperature, seed=1, **options)
    assert {choose(logits) for _ in range(20)} == {int(logits.argmax())}


def test_a_seed_says_it_all():
    draws = [[choose(LOGITS) for _ in range(50)] for choose in (sampler(seed=3), sampler(seed=3), sampler(seed=4))]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(temperature=0.0), "`temperature=0.0` has to be above 0"),
        (dict(temperature=float("nan")), "`temperature=nan`"),
        (dict(top_k=0), "`top_k=0` has to be a whole number from 1 up"),
        (dict(top_p=0.0), "`top_p=0.0` has to be above 0"),
        (dict(top_p=1.5), "`top_p=1.5` .* at most 1"),
        (dict(min_p=1.5), "`min_p=1.5` .* at most 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(OptionError, match=message):
        sampler(**options)
