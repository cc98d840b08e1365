"""Choosing a token by chance, for `engine.generate`."""

from collections.abc import Callable

import torch
from torch import Tensor

from qlinear.errors import OptionError


def sampler(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0
) -> Callable[[Tensor], int]:
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
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> int:
        count = len(logits) if top_k is None else min(top_k, len(logits))
        if top_k is None and top_p is None:
            likeliest, tokens = logits, None
        else:
            likeliest, tokens = logits.topk(count)
        probabilities = (likeliest.float() / temperature).softmax(-1)
        if top_p is not None:
            before = probabilities.cumsum(-1) - probabilities  # what the likelier ones reach without this one
            probabilities = probabilities.masked_fill(before >= top_p, 0.0)
        drawn = int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
        return drawn if tokens is None else int(tokens[drawn])

    return choose
