"""What a decoder makes of a given text: how likely it is, and how far two decoders lie apart."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.decoder import Decoder
from qlinear.errors import ModelError, OptionError
from qlinear.values import check_whole

# Rows of logits compared at a time: several copies of each are made.
ROWS_COMPARED = 64

# exp of more is beyond what a float holds, with room for a standard error.
MOST_NATS = 700


def negative_log_likelihood(decoder: Decoder, tokens: np.ndarray) -> float:
    """Of a text `(length,)` read from the start, in nats, summed over the tokens after its first."""
    targets, total = torch.from_numpy(tokens)[1:], 0.0
    for part in decoder.read(tokens):
        for rows in torch.from_numpy(part).split(ROWS_COMPARED):
            here, targets = targets[: len(rows)], targets[len(rows) :]  # the last has no target
            total += F.cross_entropy(rows[: len(here)], here, reduction="none").double().sum().item()
    return total


def cut_windows(tokens: np.ndarray, window: int, n_windows: int | None, name: str) -> np.ndarray:
    """The first `n_windows` windows `(n_windows, window)` of a text `(length,)`, or all. Raises `OptionError`."""
    if window < 2:
        raise OptionError(f"`window={window}` has to be at least 2: the first token of a window is not predicted")
    if n_windows is not None:
        n_windows = check_whole("n_windows", n_windows, least=1)
    if len(tokens) < 2:
        raise OptionError(
            f"{name} has {len(tokens)} tokens: there is none to be predicted from another; give more text"
        )
    available = len(tokens) // window
    if available == 0:
        raise OptionError(f"{name} has {len(tokens)} tokens, less than one `window` of {window}; use a smaller one")
    if n_windows is not None and n_windows > available:
        raise OptionError(f"`n_windows={n_windows}`: {name} has only {available} windows of {window} tokens; use fewer")
    count = n_windows or available
    return tokens[: count * window].reshape(count, window)


def perplexity(total: float, windows: np.ndarray) -> float:
    """exp of the mean over all predicted tokens of windows `(n, window)` whose negative log-likelihoods add to `total`.

    Of each window, all tokens but the first are predicted.
    """
    return exponential(total / (windows.shape[0] * (windows.shape[1] - 1)))


def exponential(loss: float) -> float:
    """exp of a mean negative log-likelihood. Raises `ModelError` where no number is as large."""
    if loss > MOST_NATS:
        raise ModelError(
            f"the text is so unlikely to the model ({loss:.0f} nats a token) that its perplexity, exp({loss:.0f}), is "
            f"no number a computer has; the model's weights are damaged"
        )
    return math.exp(loss)


class Scorer:
    """Scores continuations one after the other; what a text begins with like the one before is not read again."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._last: Sequence[int] = ()

    def log_likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Of a continuation after a context, in nats; and whether greedy decoding would write it.

        Raises `ValueError` where either is empty, or the decoder has no room for both but for their last token.
        """
        if not context or not continuation:
            raise ValueError(f"a context of {len(context)} tokens and a continuation of {len(continuation)}")
        tokens = [*context, *continuation[:-1]]  # nothing is asked of what follows the last
        known = min(_shared(tokens, self._last), len(context) - 1)
        self._last = tokens
        targets, total, greedy = torch.tensor(continuation), 0.0, True
        for part in self.decoder.read(np.array(tokens), known, rows=len(continuation)):
            rows = torch.from_numpy(part)
            here, targets = targets[: len(rows)], targets[len(rows) :]
            total -= F.cross_entropy(rows, here, reduction="none").double().sum().item()
            greedy = greedy and bool((rows.argmax(dim=-1) == here).all())
        return total, greedy


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


@dataclass(frozen=True)
class Comparison:
    """Means over the predicted tokens of a text, that is all but its first.

    nll, reference_nll: negative log-likelihoods of the text; divergence: the Kullback-Leibler divergence from the
    reference's prediction to the decoder's, sum p_reference (log p_reference - log p), in nats; agreement: the share
    of tokens for which both find the same token likeliest.
    """

    nll: float
    reference_nll: float
    divergence: float
    agreement: float


def compare(decoder: Decoder, reference: Decoder, tokens: np.ndarray) -> Comparison:
    """Both read the text `(length,)` from the start. Softmax in float32, `ROWS_COMPARED` rows at a time."""
    sums = torch.zeros(4, dtype=torch.float64)
    targets = torch.from_numpy(tokens)[1:]
    for rows, wanted in _side_by_side(decoder.read(tokens), reference.read(tokens)):
        here, targets = targets[: len(rows)], targets[len(rows) :]
        rows, wanted = rows[: len(here)], wanted[: len(here)]  # after the last token nothing is predicted
        log_p, log_q = F.log_softmax(wanted, dim=-1), F.log_softmax(rows, dim=-1)
        of_text = (-log.gather(1, here.unsqueeze(1)) for log in (log_q, log_p))
        sums += torch.stack([figures.double().sum() for figures in (*of_text, *_apart(log_p, log_q))])
    return Comparison(*(sums / (len(tokens) - 1)).tolist())


def apart(found: Iterable[np.ndarray], wanted: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of logits `(n, vocabulary)`: the divergence `(length,)` from `wanted` in nats, whether both agree.

    Both are the same rows, in parts of their own; see `Comparison`.
    """
    logs = ([F.log_softmax(part, dim=-1) for part in pair] for pair in _side_by_side(iter(wanted), iter(found)))
    divergence, agreed = zip(*(_apart(log_p, log_q) for log_p, log_q in logs), strict=True)
    return torch.cat(divergence).numpy(), torch.cat(agreed).numpy()


def _apart(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1), log_p.argmax(dim=-1) == log_q.argmax(dim=-1)


def _side_by_side(first: Iterator[np.ndarray], second: Iterator[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of two streams of equal length, which come in parts of their own, in parts of the same."""
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        count = min(len(one), len(other), ROWS_COMPARED)
        yield torch.from_numpy(one[:count]), torch.from_numpy(other[:count])
        one, other = one[count:], other[count:]
        one = one if len(one) else next(first, None)
        other = other if len(other) else next(second, None)
