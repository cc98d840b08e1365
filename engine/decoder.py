"""What every way of running a model offers: a text goes in, logits come out."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from qlinear.errors import ModelError


class Decoder(Protocol):
    """Something that reads texts, and remembers the last one it was given.

    max_tokens: the longest text; vocabulary: ids are below it; nbytes: of its cache of keys and values, 0 where the
    model's modules keep that; same_in_any_cut: whether what comes after a token has the same bits however many are
    read with it; same_in_any_room: and whatever `max_tokens` is.
    """

    max_tokens: int
    vocabulary: int
    nbytes: int
    same_in_any_cut: bool
    same_in_any_room: bool

    def read(self, tokens: np.ndarray, known: int = 0, rows: int | None = None) -> Iterator[np.ndarray]:
        """Read a text `(length,)` int64 and give the logits after its last `rows` tokens, or after all from `known` on.

        known: how many tokens at its start are those of the text that `read` was given last, and need not be read
        again; less than its length. rows: 1 at least, the length less `known` at most. A part is `(some rows,
        vocabulary)`, float32, and good until the next one is asked for. Raises `ValueError` for what there is no room
        for or no such token, `ModelError` for logits that are not finite.
        """


def check_text(decoder: Decoder, tokens: np.ndarray, known: int, rows: int | None, held: int) -> None:
    """Raise `ValueError` for what no decoder reads; held: tokens of the text that it was given last."""
    length = len(tokens)
    if not 0 < length <= decoder.max_tokens:
        raise ValueError(f"{length} tokens: the decoder reads 1 to {decoder.max_tokens}")
    if not 0 <= known < length or known > held:
        raise ValueError(f"{known} tokens are said to be known, of {length} and of {held} read before")
    if rows is not None and not 0 < rows <= length - known:
        raise ValueError(f"{rows} rows are asked for, of {length - known} tokens to be read")
    if tokens[known:].min() < 0 or tokens[known:].max() >= decoder.vocabulary:
        raise ValueError(f"token ids have to be in [0, {decoder.vocabulary})")


def check_finite(logits: np.ndarray) -> np.ndarray:
    """The same. Raises `ModelError`."""
    if not (np.isfinite(logits.min()) and np.isfinite(logits.max())):
        raise ModelError("the model's logits are not finite: its weights are damaged, or too large for bfloat16")
    return logits


def read_last(decoder: Decoder, tokens: np.ndarray, known: int = 0) -> np.ndarray:
    """Logits `(vocabulary,)` after a text, good until the decoder reads again."""
    (part,) = decoder.read(tokens, known, rows=1)
    return part[0]


def read_all(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Logits `(length, vocabulary)` after every token of a text, read from the start: a copy."""
    return np.concatenate([rows.copy() for rows in decoder.read(tokens)])
