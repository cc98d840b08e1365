"""A block's linears solved side by side: what each is given, and what is said of it."""

import pytest
import torch

from qlinear.grid import GridWeight
from scales.mappings import architecture_of, block_linears
from scales.observe import observe_inputs, record_calls
from scales.solve import METHODS, Method, Text, reading_the_same, solve_block
from scales.task import BlockTask
from tests.tiny import VARIANTS, tiny_model, tiny_tokens

GROUP = 16


def first_block(model_type: str, **overrides) -> BlockTask:
    model = tiny_model(model_type, **overrides).requires_grad_(False)
    blocks = list(model.get_submodule(architecture_of(model.config).blocks))
    hidden, calls = record_calls(model, blocks, tiny_tokens(4, 24))
    return BlockTask(blocks[0], block_linears(blocks[0]), calls[0], hidden, [])


def inputs_of(task: BlockTask) -> dict[str, torch.Tensor]:
    """What each linear of the block reads, `(tokens, K)` float64."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in task.linears}
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: rows[name].append(args[0].double().flatten(0, -2)))
        for name, linear in task.linears.items()
    ]
    with torch.no_grad():
        for x in task.inputs:
            task.call(task.block, x)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
@pytest.mark.parametrize("solver", ["hqq", "gptq"])
def test_solved_together_is_solved_one_by_one(model_type, overrides, solver):
    task, bits = first_block(model_type, **overrides), 3
    solution, inputs = solve_block(task, METHODS[solver], bits, GROUP), inputs_of(task)
    assert list(solution.grids) == list(task.linears)
    for name, linear in task.linears.items():
        gram = (inputs[name].t() @ inputs[name]).float()
        alone = METHODS[solver].linear(linear.weight.data, bits, GROUP, gram)
        found = solution.grids[name]
        assert found.codes.shape == linear.weight.shape
        same = (found.codes == alone.codes).float().mean()
        assert same > 0.98, name  # the Gram matrices differ by rounding, which tips a tie here and there

        off = (found.decode().double() - linear.weight.double()) @ inputs[name].t()
        whole = linear.weight.double() @ inputs[name].t()
        assert solution.losses[name] == pytest.approx(float(off.square().sum() / whole.square().sum()), rel=1e-3)


def test_linears_with_one_input_are_handed_over_as_one():
    task = first_block("llama")
    seen = observe_inputs(task.block, task.linears, task.inputs, task.call)
    q, k, v, gate, up = (f"{part}_proj" for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"))
    assert [set(names) for names in reading_the_same(seen)] == [
        {q, k, v},
        {"self_attn.o_proj"},
        {gate, up},
        {"mlp.down_proj"},
    ]
    given = []

    def spy(weight: torch.Tensor, bits: int, group_size: int, gram: torch.Tensor | None = None) -> GridWeight:
        given.append((len(weight), gram))
        return METHODS["rtn"].linear(weight, bits, group_size)

    solve_block(task, Method(spy, Text.ALWAYS), 4, GROUP, seen)
    sizes = {name: linear.out_features for name, linear in task.linears.items()}
    assert [rows for rows, _ in given] == [
        sizes[q] + sizes[k] + sizes[v],
        sizes["self_attn.o_proj"],
        sizes[gate] + sizes[up],
        sizes["mlp.down_proj"],
    ]
    assert given[0][1] is seen[q].gram, "statistics that are known are not gathered again"
