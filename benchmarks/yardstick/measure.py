"""How far predictions lie from the float model's, with the errors that follow from having read so few passages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.yardstick.texts import Passage
from engine.model import Model
from engine.scoring import apart


@dataclass(frozen=True)
class Estimate:
    """error: one standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Told:
    """What is kept of one checkpoint and one kind of text. sums, tokens: of the divergences of each passage, in nats,
    and how many there are; median, most: of single tokens, most: exceeded by one in a hundred; agreement: the share of
    tokens whose likeliest is the float model's.
    """

    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    median: float
    most: float
    agreement: float


@dataclass(frozen=True)
class Apart:
    """Of the predicted tokens of each passage: divergences `(n,)` in nats, and whether both agree `(n,)`."""

    divergences: Sequence[np.ndarray]
    agreements: Sequence[np.ndarray]

    @property
    def mean(self) -> Estimate:
        return mean(self.divergences)

    @property
    def agreement(self) -> Estimate:
        """Of the likeliest token."""
        return mean(self.agreements)

    def quantile(self, share: float) -> float:
        """Of all tokens' divergences."""
        return float(np.quantile(np.concatenate(self.divergences), share))

    def told(self) -> Told:
        sums = tuple(float(one.sum(dtype=np.float64)) for one in self.divergences)
        sizes = tuple(len(one) for one in self.divergences)
        return Told(sums, sizes, self.quantile(0.5), self.quantile(0.99), self.agreement.value)

    def above(self, other: "Apart") -> Estimate:
        """By how much the mean is larger than another's on the same passages: what they have in common drops out."""
        pairs = zip(self.divergences, other.divergences, strict=True)
        return mean([one.astype(np.float64) - two for one, two in pairs])


def mean(passages: Sequence[np.ndarray]) -> Estimate:
    """Over all tokens. Tokens of a passage go together, so that passages are what is drawn: the error is that of the
    ratio of two sums over them (Cochran, Sampling Techniques, 1977, 6.4)."""
    return ratio([one.sum(dtype=np.float64) for one in passages], [len(one) for one in passages])


def ratio(sums: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """`mean`, of the sums over each passage."""
    sums, sizes = np.array(sums, np.float64), np.array(sizes, np.float64)
    value = sums.sum() / sizes.sum()
    if len(sums) < 2:
        return Estimate(float(value), float("nan"))
    off = np.square(sums - value * sizes).sum() * len(sums) / (len(sums) - 1)
    return Estimate(float(value), float(np.sqrt(off) / sizes.sum()))


def over_draws(found: Sequence[Apart]) -> Estimate:
    """Of the means of models that differ only in their calibration text: their mean, and how far one lies from it, the
    standard deviation of a single draw."""
    means = [one.mean.value for one in found]
    return Estimate(float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else float("nan"))


def measure(models: Sequence[Model], reference: Model, passages: Sequence[Passage]) -> Iterator[list[tuple]]:
    """Passage by passage, divergences and agreements `(n,)` of each model; the float model reads it once for all."""
    longest = max(len(passage.tokens) for passage in passages)
    decoders = [model.decoder(longest, rewinds=True) for model in models]
    of_reference = reference.decoder(longest, rewinds=True)
    for passage in passages:
        read, rows = (
            passage.tokens[:-1],
            len(passage.tokens) - passage.first,
        )  # nothing is asked of what follows the last
        wanted = [part.copy() for part in of_reference.read(read, 0, rows)]
        yield [apart(decoder.read(read, 0, rows), wanted) for decoder in decoders]


def collect(models: Sequence[Model], reference: Model, passages: Sequence[Passage]) -> list[Apart]:
    """Of each model."""
    found = list(zip(*measure(models, reference, passages), strict=True))
    return [Apart(*map(tuple, zip(*of_model, strict=True))) for of_model in found]
