"""What a solver is given of a block, and what it gives back."""

from dataclasses import dataclass

from torch import Tensor, nn

from qlinear.grid import GridWeight
from scales.observe import Call


@dataclass(frozen=True)
class BlockTask:
    """One block, scaled but with its own float32 weights.

    inputs: what the blocks before it hand over, `(1, seqlen, hidden)` a sample, quantized as those are by now, so
    that a solver can make up for their errors too; targets: the outputs of this block in the float model.
    """

    block: nn.Module
    linears: dict[str, nn.Linear]
    call: Call
    inputs: list[Tensor]
    targets: list[Tensor]


@dataclass(frozen=True)
class BlockErrors:
    """Relative squared error of a block's output, before and after its linears were solved together."""

    before: float
    after: float


@dataclass(frozen=True)
class Solution:
    """By local name of each linear: its weight on the grid, and the relative squared error of its output, if known.

    block: None where each linear was solved by itself.
    """

    grids: dict[str, GridWeight]
    losses: dict[str, float]
    block: BlockErrors | None = None
