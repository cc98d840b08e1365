"""Any decoder as one that has slots, though it has one: for models that are not run as a whole stack."""

from collections.abc import Sequence

import numpy as np

from engine.decoder import Decoder
from qlinear.backends.stack import Reading


class OneText:
    """`qlinear.backends.stack.StackDecoder` of a `Decoder`, which keeps its cache to itself."""

    slots, nbytes, same_in_any_cut = 1, 0, False

    def __init__(self, decoder: Decoder, chunk: int):
        self._decoder = decoder
        self.max_tokens, self.vocabulary, self.chunk = decoder.max_tokens, decoder.vocabulary, chunk
        self._text = np.zeros(decoder.max_tokens, np.int64)

    def read(self, readings: Sequence[Reading], out: np.ndarray) -> None:
        (reading,) = readings
        end = reading.position + len(reading.tokens)
        self._text[reading.position : end] = reading.tokens
        rows = max(1, reading.rows)
        at = 0
        for part in self._decoder.read(self._text[:end], reading.position, rows):
            if reading.rows:
                out[at : at + len(part)] = part
                at += len(part)

    def copy(self, source: int, target: int, count: int) -> None:
        """Of one slot there is nothing to copy."""
