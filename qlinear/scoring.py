"""What a decoder makes of a given text: how likely it finds a continuation, and how far two decoders lie apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlinear.decoder import Decoder

# Rows of two decoders' logits compared at a time: several copies of each are made.
ROWS_COMPARED = 64


class Scorer:
    """Scores continuations one after the other; what a text begins with like the one before is not read again."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._last: Sequence[int] = ()

    def log_likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Of a continuation after a context, neither empty, in nats; and whether greedy decoding would write it."""
        tokens = [*context, *continuation[:-1]]  # nothing is asked of what follows the last
        known = min(_shared(tokens, self._last), len(context) - 1)
        self._last = tokens
        skip, targets = len(context) - 1 - known, torch.tensor(continuation)
        total, greedy = 0.0, True
        for rows in self.decoder.read(torch.tensor(tokens), known):
            skip, rows = max(0, skip - len(rows)), rows[skip:]
            here, targets = targets[: len(rows)].to(rows.device), targets[len(rows) :]
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


def compare(decoder: Decoder, reference: Decoder, tokens: Tensor) -> Comparison:
    """Both read the text `(length,)` from the start. Softmax in float32, `ROWS_COMPARED` rows at a time."""
    sums = torch.zeros(4, dtype=torch.float64)
    targets = tokens[1:]
    for rows, wanted in _side_by_side(decoder.read(tokens), reference.read(tokens)):
        here, targets = targets[: len(rows)].to(rows.device), targets[len(rows) :]
        rows, wanted = rows[: len(here)], wanted[: len(here)]  # after the last token nothing is predicted
        log_p, log_q = F.log_softmax(wanted, dim=-1), F.log_softmax(rows, dim=-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        agreed = rows.argmax(dim=-1) == wanted.argmax(dim=-1)
        of_text = (-log.gather(1, here.unsqueeze(1)) for log in (log_q, log_p))
        sums += torch.stack([figures.double().sum().cpu() for figures in (*of_text, divergence, agreed)])
    return Comparison(*(sums / (len(tokens) - 1)).tolist())


def _side_by_side(first: Iterator[Tensor], second: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of two streams of equal length, which come in parts of their own, in parts of the same."""
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        count = min(len(one), len(other), ROWS_COMPARED)
        yield one[:count], other[:count]
        one, other = one[count:], other[count:]
        one = one if len(one) else next(first, None)
        other = other if len(other) else next(second, None)
