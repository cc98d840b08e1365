"""The token loop: a prompt goes in at once, then one token at a time, each given out as it is chosen.

With a draft, tokens that it proposes go in with it, and are taken as far as they are those that are chosen.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from engine.decoder import Decoder
from engine.drafting import NONE, Drafted, Drafting
from engine.rules import Adjust


@dataclass(frozen=True)
class Token:
    """seconds: since the prompt went in, of the first one; since the one before, of the others."""

    id: int
    seconds: float


def pace_ms(seconds: Sequence[float], drafted: Drafted | None) -> float | None:
    """Milliseconds a token: the median; where tokens of a pass come together, the mean; None where there are none."""
    if not seconds:
        return None
    return (median(seconds) if drafted is None else fmean(seconds)) * 1e3


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
    drafting: Drafting | None = None,
) -> Iterator[Token]:
    """Read `prompt` `(length,)` int64 and write up to `max_new_tokens`, up to an end token, which is given too.

    adjust: what is done to the logits before one is chosen (see `engine.rules`). known: how many tokens at the prompt's
    start the decoder has read (see `engine.decoder`). drafting: of this answer; the tokens are the same. When one is
    given out, the decoder has read all that stand before it, and may have read others after them.
    A token is timed up to its choice; what is done with it in between is nobody's.
    """
    text = np.concatenate([prompt, np.zeros(max_new_tokens, np.int64)])
    length = len(prompt)
    while length < len(text):
        start = time.perf_counter()
        drafted = drafting if length > len(prompt) else None
        proposed = NONE if drafted is None else drafted.propose(text[:length], len(text) - length - 1)
        ahead = length + len(proposed)
        text[length:ahead] = proposed
        for row, logits in enumerate(_rows(decoder, text[:ahead], known, 1 + len(proposed))):
            if row == 0 and drafted is not None:
                drafted.took()
            chosen = choose(logits if adjust is None else adjust(text[:length], logits))
            right = length < ahead and chosen == int(text[length])
            if drafted is not None:
                drafted.wrote(right)
            yield Token(chosen, time.perf_counter() - start)
            if chosen in end_tokens:
                return
            text[length] = chosen
            known, length = length, length + 1
            if not right:
                break
            start = time.perf_counter()


def _rows(decoder: Decoder, text: np.ndarray, known: int, rows: int) -> Iterator[np.ndarray]:
    """Logits `(vocabulary,)` after each of the last tokens."""
    for part in decoder.read(text, known, rows):
        yield from part
