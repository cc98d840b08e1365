"""How codes are chosen on the grid. A solver is one file and one line in `SOLVERS`."""

from typing import Protocol

from torch import Tensor

from qlinear.grid import GridWeight
from qlinear.solvers.gptq import gptq
from qlinear.solvers.hqq import hqq
from qlinear.solvers.rtn import rtn


class Solver(Protocol):
    def __call__(self, weight: Tensor, bits: int, group_size: int, gram: Tensor | None = None) -> GridWeight:
        """Put a float weight `(N, K)` on the grid.

        gram: X^T X `(K, K)` of the inputs X the weight will meet, for solvers that weigh their errors by it; without
        it all inputs count alike.
        """


SOLVERS: dict[str, Solver] = {"rtn": rtn, "hqq": hqq, "gptq": gptq}
