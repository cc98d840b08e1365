"""Choosing a token by chance, for `engine.generate`."""

import sys
from collections.abc import Callable

import numpy as np

from qlinear.errors import OptionError
from qlinear.values import check_number, check_whole

_TRIED = (256, 4096, sys.maxsize)  # so many of the likeliest, until they reach top_p


def sampler(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    min_p: float | None = None,
) -> Callable[[np.ndarray], int]:
    """A `choose` that draws from softmax(logits / temperature); the same seed draws the same tokens.

    top_k: only among the k likeliest. top_p: only among the likeliest that together just reach this probability
    (Holtzman et al., arXiv 1904.09751), counted after top_k. min_p: of those, only such as are at least this share
    as probable as the likeliest (Nguyen et al., arXiv 2407.01082). Raises `OptionError` for values out of range.
    """
    temperature = check_number("temperature", temperature)
    if not temperature > 0:
        raise OptionError(f"`temperature={temperature}` has to be above 0; for the likeliest token, decode greedily")
    if top_k is not None:
        top_k = check_whole("top_k", top_k, least=1)
    if top_p is not None:
        top_p = check_number("top_p", top_p)
        if not 0 < top_p <= 1:
            raise OptionError(f"`top_p={top_p}` has to be above 0 and at most 1")
    if min_p is not None:
        min_p = check_number("min_p", min_p)
        if not 0 <= min_p <= 1:
            raise OptionError(f"`min_p={min_p}` has to be at least 0 and at most 1")
    seed = check_whole("seed", seed, least=0)
    generator = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> int:
        tokens = None if top_k is None else _likeliest(logits, top_k)[:top_k]
        probabilities = _softmax(logits if tokens is None else logits[tokens], temperature)
        if top_p is not None and top_p < 1:
            nucleus = _nucleus(probabilities, top_p)
            tokens = nucleus if tokens is None else tokens[nucleus]
            probabilities = probabilities[nucleus]
        if min_p:
            kept = np.flatnonzero(probabilities >= min_p * probabilities.max())
            tokens = kept if tokens is None else tokens[kept]
            probabilities = probabilities[kept]
        reached = probabilities.cumsum()
        drawn = int(np.searchsorted(reached, generator.random() * reached[-1], side="right"))
        return drawn if tokens is None else int(tokens[drawn])

    return choose


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest of the likeliest that together reach top_p; few are sorted where few do, not a whole vocabulary."""
    for count in _TRIED:
        likeliest = _likeliest(probabilities, count)
        reached = probabilities[likeliest].cumsum()
        if count >= len(probabilities) or reached[-1] >= top_p:
            break
    return likeliest[: 1 + int(np.searchsorted(reached, top_p))]


def _likeliest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest, and all that equal the least of them, by index: the largest first, of equals the first."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    kept = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return kept[np.argsort(-values[kept], kind="stable")]


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Float64: a sum over a vocabulary of float32 would be off by more than the least likely token."""
    below = logits.astype(np.float64) - logits.max()  # first: what is divided by next to nothing is out of range
    with np.errstate(over="ignore"):
        weights = np.exp(below / temperature)
    return weights / weights.sum()
