"""Statistics of what a linear's inputs are on calibration text, and how ranks sum them up together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from qlinear.errors import CalibrationError
from scales.ranks import Ranks

# Columns of a Gram matrix that are added to at a time, and tokens: of more, oneDNN may make as many sums as there are
# threads and add those up, which rounds differently on another number of them.
PANEL = 256
TOKENS = 1024

# A Gram matrix of few tokens looks more certain of its directions than the text is. It is shrunk towards a multiple of
# the identity (as Ledoit and Wolf, 2004, do covariances), the more, the fewer tokens there are for each of its columns.
# The share is measured: docs/experts.md.
SHRINKAGE = 0.3


class StandIn(Enum):
    """Whose inputs statistics are of, where they are not the layer's own: of all experts beside it, or nobody's."""

    LAYER = "all experts' inputs"
    NONE = "none"


@dataclass(eq=False)
class InputStatistics:
    """Of one linear's input x over all tokens: the sum of |x| `(K,)`, the Gram matrix x^T x `(K, K)`, the token count.

    float32 throughout: half precision overflows on the outlier channels that AWQ is about. The Gram matrix is
    symmetric, and only what lies on and right of its diagonal panels is summed up: `add` whatever there is, then
    `complete`.
    """

    sum_abs: Tensor
    gram: Tensor
    tokens: int = 0
    stand_in: StandIn | None = None

    @classmethod
    def empty(cls, in_features: int) -> "InputStatistics":
        return cls(
            torch.zeros(in_features, dtype=torch.float32), torch.zeros(in_features, in_features, dtype=torch.float32)
        )

    @property
    def panels(self) -> range:
        """Where each begins."""
        return range(0, len(self.gram), PANEL)

    def add(self, x: Tensor, panels: Sequence[int] | None = None) -> None:
        """panels: those of the Gram matrix to add to, None: all. |x| is summed up with the first."""
        rows = x.reshape(-1, x.shape[-1]).float()
        if panels is None or 0 in panels:
            self.sum_abs += rows.abs().sum(0)
        for part in rows.split(TOKENS):
            for i in self.panels if panels is None else panels:
                self.gram[i : i + PANEL, i:].addmm_(part[:, i : i + PANEL].t(), part[:, i:])
        self.tokens += rows.shape[0]

    def complete(self) -> None:
        """Mirror the Gram matrix. Raises `CalibrationError` where what was added is not finite."""
        if not (self.sum_abs.isfinite().all() and self.gram.diagonal().isfinite().all()):
            raise CalibrationError("inputs of a layer are infinite or NaN on the calibration text: is the model sound?")
        for i in range(PANEL, len(self.gram), PANEL):
            self.gram[i:, i - PANEL : i] = self.gram[i - PANEL : i, i:].t()

    def divide(self, scale: Tensor) -> None:
        """Become the statistics of x / `scale`, `(K,)`."""
        self.sum_abs /= scale
        self.gram /= scale
        self.gram /= scale.unsqueeze(1)

    @contextmanager
    def shrunk(self) -> Iterator[Tensor]:
        """The Gram matrix with SHRINKAGE * K / tokens of its mean diagonal added to it, while it is used."""
        diagonal = self.gram.diagonal()
        measured = diagonal.clone()
        diagonal += SHRINKAGE * len(diagonal) / max(self.tokens, 1) * measured.mean()
        try:
            yield self.gram
        finally:
            diagonal.copy_(measured)

    @property
    def mean_abs(self) -> Tensor:
        return self.sum_abs / max(self.tokens, 1)


class Sums:
    """Statistics by the local name of each linear, summed up over the samples of all ranks, in the samples' order.

    A rank shows the others what its linears see; each then adds up some panels of every Gram matrix, over all samples,
    as one process alone would: the bits do not depend on how many ranks there are. Linears that read one tensor share
    an object.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.statistics: dict[str, InputStatistics] = {}
        self._shown: list[tuple[str, str, Tensor | None]] = []  # name, whose input it reads, and that if it is its own
        self._load = [0] * ranks.size
        self._panels: dict[int, list[list[int]]] = {}  # of each statistics' identity, by rank

    def see(self, name: str, owner: str, x: Tensor) -> None:
        """A linear sees `x`, as `owner` did before it, which may be the linear itself."""
        if self.ranks.size == 1:
            self._take(name, owner, x)
        else:
            self._shown.append((name, owner, x.reshape(-1, x.shape[-1]).float().clone() if owner == name else None))

    def end_turn(self) -> None:
        """Every rank has run one sample, or has none left."""
        if self.ranks.size == 1:
            return
        for shown in self.ranks.each(self._shown):
            for name, owner, x in shown:
                self._take(name, owner, x)
        self._shown = []

    def _take(self, name: str, owner: str, x: Tensor | None) -> None:
        if owner != name:
            self.statistics[name] = self.statistics[owner]
            return
        if name not in self.statistics:
            self.statistics[name] = InputStatistics.empty(x.shape[-1])
        known = self.statistics[name]
        self.statistics[name].add(x, self._mine(known))

    def _mine(self, known: InputStatistics) -> list[int] | None:
        """The panels that this rank adds to; given out as inputs come up, each to the rank with least to do."""
        if self.ranks.size == 1:
            return None
        if id(known) not in self._panels:
            given: list[list[int]] = [[] for _ in self._load]
            for panel in known.panels:  # the longest first
                rank = min(range(len(given)), key=self._load.__getitem__)
                given[rank].append(panel)
                self._load[rank] += len(known.gram) - panel
            self._panels[id(known)] = given
        return self._panels[id(known)][self.ranks.rank]

    def complete(self) -> dict[str, InputStatistics]:
        """The whole of them. Raises `CalibrationError` where what was seen is not finite."""
        for known in {id(each): each for each in self.statistics.values()}.values():
            if self.ranks.size > 1:
                self._gather(known)
            known.complete()
        return self.statistics

    def _gather(self, known: InputStatistics) -> None:
        """A panel of each rank at a time."""
        given = self._panels[id(known)]
        own = given[self.ranks.rank]
        for turn in range(max(map(len, given))):
            mine = known.gram[own[turn] : own[turn] + PANEL, own[turn] :] if turn < len(own) else None
            sums = known.sum_abs if turn == 0 and 0 in own else None
            for panels, (other_sums, part) in zip(given, self.ranks.each((sums, mine)), strict=True):
                if other_sums is not None:
                    known.sum_abs = other_sums
                if part is not None:
                    known.gram[panels[turn] : panels[turn] + PANEL, panels[turn] :] = part
