"""The token loop: a prompt goes in at once, then one token at a time, each given out as it is chosen."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from engine.decoder import Decoder, read_last
from engine.rules import Adjust


@dataclass(frozen=True)
class Token:
    """seconds: since the prompt went in, of the first one; since the one before, of the others."""

    id: int
    seconds: float


def greedy(logits: np.ndarray) -> int:
    return int(logits.argmax())


def generate(
    decoder: Decoder,
    prompt: np.ndarray,
    max_new_tokens: int,
    end_tokens: frozenset[int] = frozenset(),
    choose: Callable[[np.ndarray], int] = greedy,
    adjust: Adjust | None = None,
    *,
    known: int = 0,
) -> Iterator[Token]:
    """Read `prompt` `(length,)` int64 and write up to `max_new_tokens`, up to an end token, which is given too.

    adjust: what is done to the logits before one is chosen (see `engine.rules`). known: how many tokens at the prompt's
    start the decoder has read (see `engine.decoder`).
    A token is timed up to its choice; what is done with it in between is nobody's.
    """
    text = np.concatenate([prompt, np.zeros(max_new_tokens, np.int64)])
    for length in range(len(prompt), len(text)):
        start = time.perf_counter()
        logits = read_last(decoder, text[:length], known)
        chosen = choose(logits if adjust is None else adjust(text[:length], logits))
        yield Token(chosen, time.perf_counter() - start)
        if chosen in end_tokens:
            return
        text[length] = chosen
        known = length
