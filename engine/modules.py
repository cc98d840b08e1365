"""The model's own modules as a decoder: one forward a call."""

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

    def read(self, tokens: Tensor, known: int = 0, rows: int | None = None) -> Iterator[Tensor]:
        wanted = len(tokens) - known if rows is None else rows
        with torch.inference_mode():  # in which the cache was filled, and without which it cannot be cleared
            read = tokens[self._cut_back(known) :].to(self.model.device)
            out = self.model(
                input_ids=read.unsqueeze(0), past_key_values=self._cache, use_cache=True, logits_to_keep=wanted
            )
        for part in out.logits[0].split(ROWS_PER_PART):
            yield part.float()

    def _cut_back(self, known: int) -> int:
        """Have a cache of the first `known` positions, or, where it cannot be cut back to that, of none; how many."""
        held = self._cache.get_seq_length() if known else 0
        if held == known and known:
            return known
        if known and not self.static and self._crop(held - known):
            return known
        self._start()
        return 0

    def _crop(self, surplus: int) -> bool:
        """Whether the cache could be cut: a window that has moved on and a recurrent state cannot go back."""
        if not getattr(self._cache, "is_croppable", True):
            return False
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
