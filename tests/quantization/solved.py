"""A block solved on what it sees of its text."""

from qlinear.grid import Grid
from quantization.methods import METHODS
from quantization.solve import solve_block
from quantization.unit import BlockTask, Solution
from scales.observe import observe_inputs
from scales.statistics import InputStatistics


def seen_by(task: BlockTask) -> dict[str, InputStatistics]:
    return observe_inputs(task.unit.block, task.unit.linears, task.inputs, task.unit.call)


def solved(task: BlockTask, method: str, grid: Grid) -> Solution:
    return solve_block(task, METHODS[method], dict.fromkeys(task.unit.linears, grid), seen_by(task))
