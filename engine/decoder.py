"""What every way of running a model offers: a text goes in, logits come out."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """Something that reads texts, and remembers the last one it was given."""

    def read(self, tokens: Tensor, known: int = 0, rows: int | None = None) -> Iterator[Tensor]:
        """Read a text `(length,)` and give the logits after its last `rows` tokens, or after all from `known` on.

        known: how many tokens at its start are those of the text that `read` was given last, and need not be read
        again; less than its length. rows: at most the length less `known`. A part is `(some rows, vocabulary)`,
        float32, and good until the next one is asked for.
        """


def read_last(decoder: Decoder, tokens: Tensor, known: int = 0) -> Tensor:
    """Logits `(vocabulary,)` after a text, good until the decoder reads again."""
    (part,) = decoder.read(tokens, known, rows=1)
    return part[0]


def read_all(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Logits `(length, vocabulary)` after every token of a text, read from the start: a copy."""
    return torch.cat([rows.clone() for rows in decoder.read(tokens)])
