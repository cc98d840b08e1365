"""The model's own modules as a decoder: one forward a call."""

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor

# Logits widened to float32 at a time; the whole text's would be length x vocabulary.
ROWS_PER_PART = 256


class ModuleDecoder:
    """`engine.decoder.Decoder` over any causal LM of `transformers`.

    static_cache: keep keys and values in buffers of `max_tokens` positions, allocated once and used again for every
    text, instead of a cache that grows; it cannot be cut back, so texts that begin alike are read whole. Falcons with
    ALiBi, whose biases `transformers` makes as long as what has been read and not as long as the buffers, have one
    that grows all the same.
    """

    def __init__(self, model: torch.nn.Module, max_tokens: int, static_cache: bool):
        self.model = model
        self.max_tokens = max_tokens
        self.static = static_cache and not getattr(model.config, "alibi", False)
        self._cache = None
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def read(self, tokens: Tensor, known: int = 0, rows: int | None = None) -> Iterator[Tensor]:
        wanted = len(tokens) - known if rows is None else rows
        with torch.inference_mode():  # in which the cache was filled, and without which it cannot be cleared
            start = self._cut_back(known, len(tokens))
            ids = tokens[start:].unsqueeze(0).to(self.model.device)
            out = self.model(
                input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=wanted,
                **self._positions(start, len(tokens)),
            )  # fmt: skip
        for part in out.logits[0].split(ROWS_PER_PART):
            yield part.float()

    def _positions(self, start: int, stop: int) -> dict[str, Tensor]:
        """Left to themselves, some models (Bamba) would count from 0 in every call."""
        if not self._takes_positions:
            return {}
        return {"position_ids": torch.arange(start, stop, device=self.model.device).unsqueeze(0)}

    def _cut_back(self, known: int, length: int) -> int:
        """Have a cache of the first `known` positions, or, where it cannot be cut back to that, of none; how many.

        Recurrent states go on by one token at a time, as in the model's own `generate`: not all take in more at once.
        """
        held = self._held() if known else 0
        rewinds = not self.static and getattr(self._cache, "is_croppable", True)
        if known and held == known and (rewinds or length == known + 1):
            return known
        if known and held > known and rewinds and self._crop(held - known):
            return known
        self._start()
        return 0

    def _held(self) -> int:
        """Positions in the cache; 0 where the model keeps its past elsewhere, so that all is read again."""
        try:
            return self._cache.get_seq_length()
        except ValueError:  # recurrent states alone do not count
            return 0

    def _crop(self, surplus: int) -> bool:
        """Whether the cache could be cut: a window that has moved on cannot go back."""
        try:
            self._cache.crop(-surplus)
        except (RuntimeError, ValueError, NotImplementedError):
            return False
        return True

    def _start(self) -> None:
        from transformers import DynamicCache, StaticCache

        if not self.static:
            self._cache = DynamicCache(config=self.model.config)
        elif self._cache is None:
            self._cache = StaticCache(config=self.model.config, max_cache_len=self.max_tokens)
        else:
            self._cache.reset()
