"""The token loop: a prompt goes in at once, then one token at a time, with the time of each step."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits widened to float32 at a time; the whole text's would be length x vocabulary.
ROWS_PER_CHUNK = 256


class Decoder(Protocol):
    """Something that has read a prefix and can read on. Logits are float32 `(vocabulary,)`."""

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read a prompt `(length,)` from the start and return the logits after it."""

    def step(self, token: int) -> Tensor:
        """Read one more token and return the logits after it."""

    def negative_log_likelihood(self, tokens: Tensor) -> float:
        """Of a text `(length,)` read from the start, summed over the tokens after its first; float32 log-softmax."""

    def read(self, tokens: Tensor, known: int = 0) -> Iterator[Tensor]:
        """Read a text `(length,)` and give the logits after each of its tokens from number `known` on, in parts.

        known: how many tokens at its start are those of the text that `read` was given last, and are not read again;
        less than its length. A part is `(rows, vocabulary)`, float32, and good until the next one is asked for.
        """


class ModuleDecoder:
    """Runs the model's own modules, one forward a step.

    static_cache: keep keys and values in buffers of `max_tokens` positions, allocated once and used again for every
    prompt, instead of a cache that grows. Falcons with ALiBi, whose biases `transformers` makes as long as what has
    been read and not as long as the buffers, have one that grows all the same.
    """

    def __init__(self, model: torch.nn.Module, max_tokens: int, static_cache: bool):
        self.model = model
        self.max_tokens = max_tokens
        self.cache = None
        self.text_cache = None
        self.static = static_cache and not getattr(model.config, "alibi", False)

    def prefill(self, tokens: Tensor) -> Tensor:
        with torch.inference_mode():  # in which the cache was filled, and without which it cannot be cleared
            self._start()
        return self._forward(tokens.unsqueeze(0))

    def step(self, token: int) -> Tensor:
        return self._forward(torch.tensor([[token]], device=self.model.device))

    def negative_log_likelihood(self, tokens: Tensor) -> float:
        ids = tokens.to(self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
            parts = zip(logits[:-1].split(ROWS_PER_CHUNK), ids[1:].split(ROWS_PER_CHUNK), strict=True)
            return sum(F.cross_entropy(rows.float(), targets, reduction="sum").item() for rows, targets in parts)

    def read(self, tokens: Tensor, known: int = 0) -> Iterator[Tensor]:
        from transformers import DynamicCache

        with torch.inference_mode():
            if known == 0:
                self.text_cache = DynamicCache()  # without the config: one with sliding windows cannot be cut back
            elif (surplus := self.text_cache.get_seq_length() - known) > 0:
                self.text_cache.crop(-surplus)
            ids = tokens[known:].to(self.model.device).unsqueeze(0)
            logits = self.model(input_ids=ids, past_key_values=self.text_cache, use_cache=True).logits[0]
        for rows in logits.split(ROWS_PER_CHUNK):
            yield rows.float()

    def _start(self) -> None:
        from transformers import DynamicCache, StaticCache

        if not self.static:
            self.cache = DynamicCache(config=self.model.config)
        elif self.cache is None:
            self.cache = StaticCache(config=self.model.config, max_cache_len=self.max_tokens)
        else:
            self.cache.reset()

    def _forward(self, tokens: Tensor) -> Tensor:
        with torch.inference_mode():
            out = self.model(
                input_ids=tokens.to(self.model.device), past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        return out.logits[0, -1].float()


@dataclass(frozen=True)
class Generation:
    """tokens: the new ones, an end token included; ttft_s: prompt in to first token out; step_s: each token after."""

    tokens: list[int]
    ttft_s: float
    step_s: list[float]


def greedy(logits: Tensor) -> int:
    return int(logits.argmax())


def generate(
    decoder: Decoder,
    prompt: Tensor,
    max_new_tokens: int,
    end_tokens: frozenset[int] = frozenset(),
    choose: Callable[[Tensor], int] = greedy,
) -> Generation:
    """Read `prompt` `(length,)` and write up to `max_new_tokens`, stopping after an end token."""
    start = time.perf_counter()
    tokens = [choose(decoder.prefill(prompt))]
    ttft = time.perf_counter() - start
    steps = []
    while len(tokens) < max_new_tokens and tokens[-1] not in end_tokens:
        start = time.perf_counter()
        tokens.append(choose(decoder.step(tokens[-1])))
        steps.append(time.perf_counter() - start)
    return Generation(tokens, ttft, steps)
