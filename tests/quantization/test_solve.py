"""A block's linears solved side by side: what each is given, and what is said of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from architectures.registry import find_family
from qlinear.grid import Grid, GridWeight
from quantization.methods import METHODS
from quantization.solve import reading_the_same, round_linears, solve_block
from quantization.unit import BlockTask, Unit
from scales.calls import record_calls
from scales.observe import Held
from tests.quantization.solved import seen_by, solved
from tests.tiny import VARIANTS, known_of, tiny_model, tiny_tokens

GROUP = 16


def first_block(model_type: str, **overrides) -> BlockTask:
    model = tiny_model(model_type, **overrides).requires_grad_(False)
    names = find_family(model.config).block_names(model)
    blocks = [model.get_submodule(name) for name in names]
    hidden, calls = record_calls(model, blocks, tiny_tokens(4, 24))
    return BlockTask(Unit(0, names[0], blocks[0], known_of(model, blocks[0]), calls[0]), Held.all(hidden), None)


def inputs_of(task: BlockTask) -> dict[str, torch.Tensor]:
    """What each linear of the block reads, `(tokens, K)` float64."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in task.unit.linears}
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: rows[name].append(args[0].double().flatten(0, -2)))
        for name, linear in task.unit.linears.items()
    ]
    with torch.no_grad():
        for x in task.inputs:
            task.unit.call(task.unit.block, x)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
@pytest.mark.parametrize("solver", ["hqq", "gptq"])
def test_solved_together_is_solved_one_by_one(model_type, overrides, solver):
    task, bits = first_block(model_type, **overrides), 3
    solution, inputs = solved(task, solver, Grid(bits, GROUP)), inputs_of(task)
    assert list(solution.grids) == list(task.unit.linears)
    for name, linear in task.unit.linears.items():
        gram, (tokens, width) = inputs[name].t() @ inputs[name], inputs[name].shape
        shrunk = gram + 0.3 * width / tokens * gram.diagonal().mean() * torch.eye(width)
        alone = METHODS[solver].linear(linear.weight.data, Grid(bits, GROUP), shrunk.float())
        found = solution.grids[name]
        assert found.codes.shape == linear.weight.shape
        same = (found.codes == alone.codes).float().mean()
        assert same > 0.98, name  # the Gram matrices differ by rounding, which tips a tie here and there

        off = (found.dequantize().double() - linear.weight.double()) @ inputs[name].t()
        whole = linear.weight.double() @ inputs[name].t()
        assert solution.losses[name] == pytest.approx(float(off.square().sum() / whole.square().sum()), rel=1e-3)


@pytest.mark.parametrize("solver", METHODS)
def test_a_symmetric_grid_is_kept_by_every_method(solver, monkeypatch):
    """Learning moves codes and scales, and no zero point."""
    monkeypatch.setattr("quantization.learned.STEPS", 20)
    task = first_block("llama")
    task = replace(task, targets=[task.unit.call(task.unit.block, x) for x in task.inputs])
    solution = solved(task, solver, Grid(3, GROUP, symmetric=True))
    for name, found in solution.grids.items():
        assert bool((found.zeros == 4).all()) and found.codes.max() < 8, name
        assert 0 < solution.losses[name] < 0.2


def test_linears_with_one_input_are_handed_over_as_one():
    task = first_block("llama")
    seen = seen_by(task)
    q, k, v, gate, up = (f"{part}_proj" for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"))
    assert [set(names) for names in reading_the_same(seen)] == [
        {q, k, v},
        {"self_attn.o_proj"},
        {gate, up},
        {"mlp.down_proj"},
    ]
    given = []

    def spy(weight: torch.Tensor, grid: Grid, gram: torch.Tensor | None = None) -> GridWeight:
        given.append((len(weight), gram))
        return METHODS["rtn"].linear(weight, grid)

    grids = dict.fromkeys(task.unit.linears, Grid(4, GROUP))
    solve_block(task, SimpleNamespace(linear=spy, block=None), grids, seen)
    sizes = {name: linear.out_features for name, linear in task.unit.linears.items()}
    assert [rows for rows, _ in given] == [
        sizes[q] + sizes[k] + sizes[v],
        sizes["self_attn.o_proj"],
        sizes[gate] + sizes[up],
        sizes["mlp.down_proj"],
    ]
    assert given[0][1] is seen[q].gram, "statistics that are known are not gathered again"


def test_linears_rounded_without_a_text():
    """In float64: each code is the nearest one, and nothing is said of errors."""
    unit = first_block("llama").unit
    solution = round_linears(unit, METHODS["rtn"], dict.fromkeys(unit.linears, Grid(4, GROUP)))
    assert list(solution.grids) == list(unit.linears) and solution.losses == {} and solution.block is None
    for name, linear in unit.linears.items():
        grid, weight = solution.grids[name], linear.weight.double()
        scales, zeros = (part.double().repeat_interleave(GROUP, 1) for part in (grid.scales, grid.zeros))
        levels = torch.arange(16, dtype=torch.float64).view(-1, 1, 1)
        distances = ((levels - zeros) * scales - weight).abs()
        found = distances.gather(0, grid.codes.long().unsqueeze(0))[0]
        assert (found <= distances.amin(0) + 1e-6 * scales).all(), name
