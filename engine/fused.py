"""A model's whole stack as one decoder of its backend."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.decoder import check_finite, check_text
from engine.stack import describe
from qlinear.backends.base import Backend
from qlinear.backends.stack import StackDecoder, Unsupported
from qlinear.errors import TargetError

# Tokens of a prompt read at a time: bounds the memory for their activations. A multiple of the 12 rows of the widest
# matmul kernel.
CHUNK = 264


def fused_decoder(
    model: nn.Module, backend: Backend, max_tokens: int, chunk: int = CHUNK
) -> "tuple[FusedDecoder | None, str | None]":
    """A fused decoder with a cache of `max_tokens` positions; or None and the reason why there is none.

    model: a causal LM of `transformers` whose quantized layers run on `backend`. It keeps its weights, which the
    decoder reads in place.
    """
    try:
        stack = describe(model, max_tokens)
        return FusedDecoder(backend.decoder(stack, max_tokens, min(chunk, max_tokens))), None
    except (Unsupported, TargetError) as reason:
        return None, str(reason)


class FusedDecoder:
    """`engine.decoder.Decoder`: one call of the backend a token, and one a chunk of a prompt."""

    def __init__(self, stack: StackDecoder):
        self.stack = stack
        self.max_tokens, self.vocabulary = stack.max_tokens, stack.vocabulary
        self._held = 0  # positions of the last text in the cache
        self._logits = torch.empty(1, self.vocabulary, device=stack.device)

    def read(self, tokens: Tensor, known: int = 0, rows: int | None = None) -> Iterator[Tensor]:
        """Raises `ValueError` as `check_text` does, `ModelError` for logits that are not finite."""
        check_text(self, tokens, known, rows, self._held)
        unwanted = 0 if rows is None else len(tokens) - known - rows
        position = known
        for part in tokens[known:].to(torch.int64).contiguous().split(self.stack.chunk):
            wanted = min(len(part), max(0, len(part) - unwanted))
            unwanted -= len(part)
            out = self._buffer(wanted)
            self.stack.read(part, position, out)
            position = self._held = position + len(part)
            if wanted:
                yield check_finite(out)

    def _buffer(self, rows: int) -> Tensor:
        if rows > len(self._logits):
            self._logits = torch.empty(rows, self.vocabulary, device=self.stack.device)
        return self._logits[:rows]
