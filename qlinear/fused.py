"""The fused decoder: a whole block stack as one native call, behind the protocol of `qlinear.decoder`."""

import ctypes
import weakref
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlinear.backends import native_decoder as native
from qlinear.errors import TargetError
from qlinear.fused_model import Described, NotFusable, describe

# Tokens of a prompt read at a time: bounds the memory for their activations. A multiple of the 12 rows of the widest
# matmul kernel.
CHUNK = 264
LOSS_ROWS = 64  # rows of logits that losses are computed of at a time


def fused_decoder(model: nn.Module, max_tokens: int, chunk: int = CHUNK) -> tuple["FusedDecoder | None", str | None]:
    """A fused decoder with a cache of `max_tokens` positions; or None and the reason why there is none.

    model: a causal LM of `transformers` whose quantized layers are prepared on the native cpu backend. It keeps its
    weights, which the decoder reads in place.
    """
    try:
        return FusedDecoder(describe(model, max_tokens, min(chunk, max_tokens))), None
    except (NotFusable, TargetError) as reason:
        return None, str(reason)


class FusedDecoder:
    """One native call per token, and one per chunk of a prompt. Not for use from two threads at once."""

    def __init__(self, described: Described):
        self._library = native.decoder_library()
        self._described = described
        self._handle = self._library.awq_decoder_create(ctypes.byref(described.model))
        weakref.finalize(self, self._library.awq_decoder_free, self._handle)
        self.max_tokens, self.vocabulary = described.model.max_tokens, described.model.vocabulary
        self.chunk = described.model.chunk
        self.position = 0
        self._logits = torch.empty(self.vocabulary)
        self._token = (ctypes.c_int64 * 1)()

    @property
    def nbytes(self) -> int:
        """Bytes of the key/value cache."""
        return self._described.cache.nbytes

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read a prompt `(length,)` from the start; logits `(vocabulary,)` after it, good until the next call.

        Raises `ValueError` if it is empty, longer than the cache, or holds an id that is no token.
        """
        self.position = 0
        for part in self._chunks(tokens):
            last = self.position + len(part) == len(tokens)
            self._read(part, 1 if last else 0, self._logits)
        return self._logits

    def step(self, token: int) -> Tensor:
        """Read one more token; logits `(vocabulary,)` float32, good until the next call."""
        if self.position >= self.max_tokens:
            raise ValueError(f"the decoder's cache is full: it has room for {self.max_tokens} tokens")
        if not 0 <= token < self.vocabulary:
            raise ValueError(f"{token} is not a token: the vocabulary has {self.vocabulary}")
        self._token[0] = token
        address = ctypes.addressof(self._token)
        self._library.awq_decoder_read(self._handle, address, 1, self.position, 1, self._logits.data_ptr())
        self.position += 1
        return self._logits

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits `(length, vocabulary)` after every token of a text `(length,)`, read from the start."""
        return torch.cat([rows.clone() for rows in self.read(tokens)])

    def read(self, tokens: Tensor, known: int = 0) -> Iterator[Tensor]:
        """Logits `(rows, vocabulary)` float32 after each token of a text from number `known` on, a chunk at a time.

        known: how many tokens at its start are in the cache already; see `qlinear.decoder.Decoder.read`.
        """
        parts = self._chunks(tokens, known)
        self.position = known
        out = torch.empty(len(parts[0]), self.vocabulary)
        for part in parts:
            self._read(part, len(part), out)
            yield out[: len(part)]

    def negative_log_likelihood(self, tokens: Tensor) -> float:
        """Of a text `(length,)` read from the start, summed over the tokens after its first."""
        total, done = 0.0, 0
        for logits in self.read(tokens):
            targets = tokens[done + 1 : done + len(logits) + 1].to(torch.int64)  # the text's last token has none
            done += len(logits)
            parts = logits[: len(targets)].split(LOSS_ROWS), targets.split(LOSS_ROWS)
            for part, wanted in zip(*parts, strict=True):
                total += F.cross_entropy(part, wanted, reduction="none").sum(dtype=torch.float64).item()
        return total

    def _chunks(self, tokens: Tensor, known: int = 0) -> tuple[Tensor, ...]:
        if not 0 < len(tokens) <= self.max_tokens:
            raise ValueError(f"{len(tokens)} tokens: the decoder reads 1 to {self.max_tokens}")
        if tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise ValueError(f"token ids have to be in [0, {self.vocabulary})")
        return tokens[known:].to(torch.int64).contiguous().split(self.chunk)

    def _read(self, tokens: Tensor, rows: int, logits: Tensor) -> None:
        address = logits.data_ptr()
        self._library.awq_decoder_read(self._handle, tokens.data_ptr(), len(tokens), self.position, rows, address)
        self.position += len(tokens)
