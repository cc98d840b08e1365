"""Codes for all linears of a unit, once it is scaled."""

from dataclasses import replace

import torch
from torch import Tensor

from qlinear.grid import Grid, GridWeight
from quantization.methods import Method
from quantization.unit import BlockTask, Fed, Solution, Unit
from scales.experts import feed_starved
from scales.observe import InputStatistics, observe_inputs, run_block
from scales.search import relative_loss, sample_rows, substituted


def round_linears(unit: Unit, method: Method, grid: Grid) -> Solution:
    """Each linear by itself, without looking at any text."""
    weights = {name: linear.weight.data for name, linear in unit.linears.items()}
    return Solution({name: method.linear(weight, grid) for name, weight in weights.items()}, {})


def solve_block(
    task: BlockTask, method: Method, grid: Grid, statistics: dict[str, InputStatistics] | None = None
) -> Solution:
    """Each linear by itself, its errors weighed by the inputs it sees; from there, the block as a whole.

    statistics: those of the inputs, where they are known; else the block is run on the inputs of the task.
    """
    if statistics is None:
        statistics = observe_inputs(task.unit.block, task.unit.linears, task.inputs, task.unit.call)
        feed_starved(statistics, task.unit.widths, sum(x.shape[1] for x in task.inputs))
    weights = {name: linear.weight.data for name, linear in task.unit.linears.items()}
    grids: dict[str, GridWeight] = {}
    for names in reading_the_same(statistics):
        joined = torch.cat([weights[name] for name in names]) if len(names) > 1 else weights[names[0]]
        solved = method.linear(joined, grid, statistics[names[0]].gram)
        grids |= zip(names, solved.split([len(weights[name]) for name in names]), strict=True)
    solution = Solution({name: grids[name] for name in weights}, {})
    if method.block:
        solution = method.block(task, solution)
    losses = {
        name: relative_loss(
            sample_rows(solution.grids[name].dequantize()), sample_rows(weights[name]), statistics[name].gram
        )
        for name in weights
    }
    return replace(solution, losses=losses, fed=fed(statistics))


def fed(statistics: dict[str, InputStatistics]) -> dict[str, Fed]:
    """What each linear was solved on."""
    return {name: Fed(seen.tokens, seen.stand_in and seen.stand_in.value) for name, seen in statistics.items()}


def reading_the_same(statistics: dict[str, InputStatistics]) -> list[list[str]]:
    """The linears, those together that read the same input: what a solver makes of that, it makes once for all."""
    together: dict[int, list[str]] = {}
    for name, seen in statistics.items():
        together.setdefault(id(seen), []).append(name)
    return list(together.values())


def run_rounded(task: BlockTask, solution: Solution) -> list[Tensor]:
    """The block's outputs on the inputs of the task when its linears stand on their grids."""
    unit = task.unit
    rounded = [solution.grids[name].dequantize() for name in unit.linears]
    with substituted(list(unit.linears.values()), rounded):
        return run_block(unit.block, task.inputs, unit.call)
