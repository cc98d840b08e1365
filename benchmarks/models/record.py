"""What is found out about one model type, as data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

# Float32 on both sides: what is more than the order of sums.
EXACT_LIMIT = 1e-3
# Times the error that transformers' own bfloat16 makes, and a floor for models in which it happens to be small.
ROUNDING_FACTOR, ROUNDING_FLOOR = 2.0, 0.01
# Times, in mixtures: where rounding tips a choice, of experts or of what sparse attention reads, what follows sees it.
EXPERTS_FACTOR = 4.0


class Outcome(StrEnum):
    """How one way of quantizing a model ended.

    wrong: something computed another function than transformers does, without a word; fault: an exception that is no
    `AwqError` of one line; unproven: made and run, but transformers itself does not run it, so that there is nothing
    to compare with.
    """

    WORKS = "works"
    REFUSED = "refused"
    FAULT = "fault"
    WRONG = "WRONG"
    UNPROVEN = "unproven"


@dataclass(frozen=True)
class Check:
    """Logits of the product beside those of transformers, as relative errors by position.

    name: what was compared; exact: whether the product ran in float32; median, worst: over the positions, None where
    they are not finite; noise: the median of transformers' own bfloat16 (0 if exact); experts: whether tokens choose
    some.
    """

    name: str
    exact: bool
    median: float | None
    worst: float | None
    noise: float
    experts: bool = False

    @classmethod
    def of(cls, name: str, exact: bool, errors: Sequence[float], noise: float, experts: bool = False) -> "Check":
        if not all(map(math.isfinite, errors)):
            return cls(name, exact, None, None, noise, experts)
        return cls(name, exact, median(errors), max(errors), noise, experts)

    @property
    def right(self) -> bool:
        if self.median is None or self.worst is None:
            return False
        if self.exact:
            return self.worst <= EXACT_LIMIT
        factor = EXPERTS_FACTOR if self.experts else ROUNDING_FACTOR
        return self.median <= factor * self.noise + ROUNDING_FLOOR


@dataclass(frozen=True)
class Blocks:
    """So many blocks of one kind. found: how their edges were, "table", "discovered" or "none"; edges: how many;

    uncovered: linears that no edge scales, `*` for numbers.
    """

    count: int
    found: str
    edges: int
    uncovered: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """Weights of the decoder that stay float, `*` for numbers, and why."""

    name: str
    reason: str


@dataclass
class Way:
    """One checkpoint, with AWQ or without.

    error, where: of the first exception that decided the outcome, one line, and the step and the lines it came from;
    quantized: names of the linears that were; left_float: matrices in the files that were not, embeddings and heads
    aside; blocks, kept, kept_share: what quantizing says of its blocks, of what stays float and of how much that is;
    strange: tensors that transformers missed or did not know; fused: whether the whole stack ran at once.
    """

    awq: str
    outcome: Outcome = Outcome.WORKS
    error: str | None = None
    where: str | None = None
    seconds: float = 0.0
    quantized: tuple[str, ...] = ()
    left_float: tuple[str, ...] = ()
    blocks: tuple[Blocks, ...] = ()
    kept: tuple[Left, ...] = ()
    kept_share: float = 0.0
    strange: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    fused: bool = False
    why_not_fused: str | None = None
    notes: tuple[str, ...] = ()

    def wrong_checks(self) -> list[Check]:
        return [check for check in self.checks if not check.right]


@dataclass
class Record:
    """A row's result. unbuilt: why there is no tiny model, if so."""

    name: str
    unbuilt: str | None = None
    ways: tuple[Way, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """A whole run. versions: of what it ran with."""

    versions: dict[str, str]
    seconds: float
    records: tuple[Record, ...]
