"""One unit of a model on its way: the module itself, what a solver is given of it, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from architectures.anatomy import Anatomy
from qlinear.grid import GridWeight
from scales.calls import Call
from scales.observe import Held


def full_name(unit: str, local: str) -> str:
    """A linear that is a unit by itself has the local name "", and so has a unit that is the whole model."""
    return f"{unit}.{local}" if unit and local else unit or local


@dataclass(frozen=True)
class Unit:
    """A decoder block, or a linear by itself where the blocks are not to be found or cannot be run.

    index: its place among the units; anatomy: what is known of it; linears: those to be quantized by local name; call:
    how the model calls it, None where no text is read.
    """

    index: int
    name: str
    block: nn.Module
    anatomy: Anatomy
    call: Call | None = None

    @property
    def linears(self) -> dict[str, nn.Linear]:
        return {name: self.block.get_submodule(name) for name in self.anatomy.linears}

    @property
    def widths(self) -> dict[str, int]:
        """in_features of each linear."""
        return {name: linear.in_features for name, linear in self.linears.items()}


@dataclass(frozen=True)
class BlockTask:
    """A block, scaled but with its own float32 weights, and its text.

    held: what the blocks before it hand over, `(1, seqlen, hidden)` a sample, quantized as those are by now, so that a
    solver can make up for their errors too; targets: the outputs of this block in the float model, None where nobody
    asked for them. The unit's call is that of this rank's samples.
    """

    unit: Unit
    held: Held
    targets: list[Tensor] | None

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Of this rank's samples."""
        return self.held.hidden


@dataclass(frozen=True)
class Fed:
    """tokens: of the calibration text that a linear's inputs were seen on; stand_in: whose inputs those were, None for
    its own.
    """

    tokens: int
    stand_in: str | None


@dataclass(frozen=True)
class BlockErrors:
    """Relative squared error of a block's output, before and after its linears were solved together."""

    before: float
    after: float


@dataclass(frozen=True)
class Distilled:
    """What came of it. steps: taken; kept: the one after which the scales were as they are stored, 0: before the first;

    before, after: divergence from the float model's predictions on the samples held back, in nats a token.
    """

    steps: int
    kept: int
    before: float
    after: float


@dataclass(frozen=True)
class Solution:
    """By local name of each linear: its weight on the grid, and the relative squared error of its output, if known.

    block: None where each linear was solved by itself; fed: what each linear's codes were chosen on, if on text.
    """

    grids: dict[str, GridWeight]
    losses: dict[str, float]
    block: BlockErrors | None = None
    fed: dict[str, Fed] = field(default_factory=dict)
