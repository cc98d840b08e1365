"""A decoder's logits as tensors, for tests that compare them with those of `transformers`."""

import numpy as np
import torch

from engine import decoder as engine
from engine import generate as loop


def ids(tokens) -> np.ndarray:
    return np.asarray(tokens, np.int64)


def parts(decoder, tokens, known=0, rows=None) -> list[torch.Tensor]:
    """Copies: a part is good until the next one is asked for."""
    return [torch.from_numpy(part.copy()) for part in decoder.read(ids(tokens), known, rows)]


def read(decoder, tokens, known=0, rows=None) -> torch.Tensor:
    return torch.cat(parts(decoder, tokens, known, rows))


def read_last(decoder, tokens, known=0) -> torch.Tensor:
    return torch.from_numpy(engine.read_last(decoder, ids(tokens), known).copy())


def read_all(decoder, tokens) -> torch.Tensor:
    return torch.from_numpy(engine.read_all(decoder, ids(tokens)))


def generate(decoder, prompt, *arguments, **options):
    return loop.generate(decoder, ids(prompt), *arguments, **options)
