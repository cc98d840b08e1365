"""A model's whole stack as one decoder of its backend."""

from collections.abc import Iterator

import numpy as np

from engine.decoder import check_finite, check_text
from qlinear.backends.stack import Reading, StackDecoder

# Tokens of a prompt read at a time: bounds the memory for their activations. A multiple of the 12 rows of the widest
# matmul kernel.
CHUNK = 264


class FusedDecoder:
    """`engine.decoder.Decoder`: one call of the backend a token, and one a chunk of a prompt."""

    same_in_any_room = True

    def __init__(self, stack: StackDecoder):
        self.stack = stack
        self.max_tokens, self.vocabulary = stack.max_tokens, stack.vocabulary
        self.same_in_any_cut, self.nbytes = stack.same_in_any_cut, stack.nbytes
        self._held = 0  # positions of the last text in the cache
        self._logits = np.empty((1, self.vocabulary), np.float32)

    def read(self, tokens: np.ndarray, known: int = 0, rows: int | None = None) -> Iterator[np.ndarray]:
        """Raises `ValueError` as `check_text` does, `ModelError` for logits that are not finite."""
        check_text(self, tokens, known, rows, self._held)
        unwanted = 0 if rows is None else len(tokens) - known - rows
        text = np.ascontiguousarray(tokens, np.int64)
        for start in range(known, len(text), self.stack.chunk):
            part = text[start : start + self.stack.chunk]
            wanted = min(len(part), max(0, len(part) - unwanted))
            unwanted -= len(part)
            out = self._buffer(wanted)
            self._held = 0  # of whatever fails half-way, nothing is known
            self.stack.read([Reading(part, start, wanted)], out)
            if wanted:
                check_finite(out)
            self._held = start + len(part)
            if wanted:
                yield out

    def _buffer(self, rows: int) -> np.ndarray:
        if rows > len(self._logits):
            self._logits = np.empty((rows, self.vocabulary), np.float32)
        return self._logits[:rows]
