"""Codes for all linears of a block, once it is scaled: which methods there are, and what each needs to see.

A method is one line in `METHODS`, whether it works on a linear at a time or on a block as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor, nn

from qlinear.grid import GridWeight
from qlinear.solvers import Solver, gptq, hqq, rtn
from scales.learned import learn_block
from scales.observe import InputStatistics, observe_inputs, run_block
from scales.search import relative_loss, sample_rows, substituted
from scales.task import BlockTask, Solution


class Text(Enum):
    """When a method looks at calibration text. HQQ by itself works without; beside AWQ, text is there anyway."""

    NEVER = 0
    WITH_AWQ = 1
    ALWAYS = 2


@dataclass(frozen=True)
class Method:
    """linear: for one linear, such as the output head; block: for a block at once, None takes linear by linear.

    A method for a block aims at what the float model's block makes of the text.
    """

    linear: Solver
    text: Text
    block: Callable[[BlockTask, Solution], Solution] | None = None

    def reads_text(self, awq: bool) -> bool:
        return self.text is Text.ALWAYS or (awq and self.text is Text.WITH_AWQ)


METHODS = {
    "rtn": Method(rtn, Text.NEVER),
    "hqq": Method(hqq, Text.WITH_AWQ),
    "gptq": Method(gptq, Text.ALWAYS),
    "learned": Method(gptq, Text.ALWAYS, learn_block),
}


def round_linears(linears: dict[str, nn.Linear], method: Method, bits: int, group_size: int) -> Solution:
    """Each linear by itself, without looking at any text."""
    return Solution({name: method.linear(linear.weight.data, bits, group_size) for name, linear in linears.items()}, {})


def solve_block(
    task: BlockTask,
    method: Method,
    bits: int,
    group_size: int,
    statistics: dict[str, InputStatistics] | None = None,
) -> Solution:
    """Each linear by itself, its errors weighed by the inputs it sees; from there, the block as a whole.

    statistics: those of the inputs, where they are known; else the block is run on the inputs of the task.
    """
    if statistics is None:
        statistics = observe_inputs(task.block, task.linears, task.inputs, task.call)
    weights = {name: linear.weight.data for name, linear in task.linears.items()}
    grids: dict[str, GridWeight] = {}
    for names in reading_the_same(statistics):
        joined = torch.cat([weights[name] for name in names]) if len(names) > 1 else weights[names[0]]
        solved = method.linear(joined, bits, group_size, statistics[names[0]].gram)
        grids |= zip(names, solved.split([len(weights[name]) for name in names]), strict=True)
    solution = Solution({name: grids[name] for name in weights}, {})
    if method.block:
        solution = method.block(task, solution)
    losses = {
        name: relative_loss(
            sample_rows(solution.grids[name].decode()), sample_rows(weights[name]), statistics[name].gram
        )
        for name in weights
    }
    return replace(solution, losses=losses)


def reading_the_same(statistics: dict[str, InputStatistics]) -> list[list[str]]:
    """The linears, those together that read the same input: what a solver makes of that, it makes once for all."""
    together: dict[int, list[str]] = {}
    for name, seen in statistics.items():
        together.setdefault(id(seen), []).append(name)
    return list(together.values())


def run_rounded(task: BlockTask, solution: Solution) -> list[Tensor]:
    """The block's outputs on the inputs of the task when its linears stand on their grids."""
    rounded = [solution.grids[name].decode() for name in task.linears]
    with substituted(list(task.linears.values()), rounded):
        return run_block(task.block, task.inputs, task.call)
