"""Codes for all linears of a unit, once it is scaled."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qlinear.grid import Grid, GridWeight
from quantization.methods import Method
from quantization.unit import BlockTask, Fed, Solution, Unit
from scales.observe import run_block
from scales.ranks import ALONE, Ranks
from scales.search import relative_loss, sample_rows, substituted
from scales.statistics import InputStatistics


def round_linears(unit: Unit, method: Method, grids: Mapping[str, Grid], ranks: Ranks = ALONE) -> Solution:
    """Each linear by itself, without looking at any text. grids: by local name."""
    weights = {name: linear.weight.data for name, linear in unit.linears.items()}
    names = list(weights)
    made = ranks.share(
        [float(weight.numel()) for weight in weights.values()],
        lambda index: method.linear(weights[names[index]], grids[names[index]]),
    )
    return Solution(dict(zip(names, made, strict=True)), {})


def solve_block(
    task: BlockTask, method: Method, grids: Mapping[str, Grid], statistics: dict[str, InputStatistics]
) -> Solution:
    """Each linear by itself, its errors weighed by the inputs it sees; from there, the block as a whole.

    grids: by local name, one for all that read the same; statistics: of their inputs, as the unit is scaled.
    """
    ranks, weights = task.held.ranks, {name: linear.weight.data for name, linear in task.unit.linears.items()}
    together = reading_the_same(statistics)

    def solve(index: int) -> list[GridWeight]:
        parts = [weights[name] for name in together[index]]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        with statistics[together[index][0]].shrunk() as gram:
            solved = method.linear(joined, grids[together[index][0]], gram)
        return solved.split([len(part) for part in parts])

    costs = [float(sum(weights[name].numel() for name in names) * weights[names[0]].shape[1]) for names in together]
    found = {
        name: made
        for names, solved in zip(together, ranks.share(costs, solve), strict=True)
        for name, made in zip(names, solved, strict=True)
    }
    solution = Solution({name: found[name] for name in weights}, {})
    if method.block:
        solution = method.block(task, solution)
    names = list(weights)

    def loss(index: int) -> float:
        rounded, weight = solution.grids[names[index]].dequantize(), weights[names[index]]
        return relative_loss(sample_rows(rounded), sample_rows(weight), statistics[names[index]].gram)

    costs = [float(weight.numel() * weight.shape[1]) for weight in weights.values()]
    losses = dict(zip(names, ranks.share(costs, loss), strict=True))
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
