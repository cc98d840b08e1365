"""Choosing a token by chance, for `engine.generate`."""

from collections.abc import Callable

import numpy as np

from qlinear.errors import OptionError


def sampler(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0
) -> Callable[[np.ndarray], int]:
    """A `choose` that draws from softmax(logits / temperature); the same seed draws the same tokens.

    top_k: only among the k likeliest. top_p: only among the likeliest that together just reach this probability
    (Holtzman et al., arXiv 1904.09751), counted after top_k. Raises `OptionError` for values out of range.
    """
    if not temperature > 0:
        raise OptionError(f"`temperature={temperature}` has to be above 0; for the likeliest token, decode greedily")
    if top_k is not None and top_k < 1:
        raise OptionError(f"`top_k={top_k}` has to be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError(f"`top_p={top_p}` has to be above 0 and at most 1")
    generator = np.random.default_rng(seed)

    def choose(logits: np.ndarray) -> int:
        tokens = None if top_k is None and top_p is None else _likeliest(logits, top_k)
        probabilities = _softmax(logits if tokens is None else logits[tokens], temperature)
        if top_p is not None:
            before = probabilities.cumsum() - probabilities  # what the likelier ones reach without this one
            probabilities[before >= top_p] = 0
        reached = probabilities.cumsum()
        drawn = int(np.searchsorted(reached, generator.random() * reached[-1], side="right"))
        return drawn if tokens is None else int(tokens[drawn])

    return choose


def _likeliest(logits: np.ndarray, top_k: int | None) -> np.ndarray:
    """The tokens of the k largest logits, or all, the likeliest first; of equals, the first."""
    if top_k is None or top_k >= len(logits):
        return np.argsort(-logits, kind="stable")
    kept = np.sort(np.argpartition(-logits, top_k - 1)[:top_k])
    return kept[np.argsort(-logits[kept], kind="stable")]


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Float64: a sum over a vocabulary of float32 would be off by more than the least likely token."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()
