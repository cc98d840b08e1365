"""Learned codes and scales against where they started from, by errors reckoned in float64 from a copy of the block."""

from copy import deepcopy

import pytest
import torch

from architectures.linears import block_linears
from architectures.registry import find_family
from qlinear.grid import Grid
from qlinear.solvers.rtn import rtn
from quantization import learned
from quantization.learned import LearnedGrid, draw_batches, split_samples
from quantization.solve import run_rounded
from quantization.unit import BlockTask, Unit
from scales.calls import record_calls
from scales.observe import Held
from tests.quantization.solved import solved
from tests.tiny import CONTEXT, VARIANTS, VOCAB, known_of, tiny_model

GROUP = 16  # divides every width of the tiny models


def second_block(model_type: str, samples: int, bits: int, length: int = CONTEXT, **overrides) -> BlockTask:
    """The second block of a tiny model; the first one, before it, is rounded already."""
    model = tiny_model(model_type, **overrides).requires_grad_(False)
    names = find_family(model.config).block_names(model)
    blocks = [model.get_submodule(name) for name in names]
    tokens = torch.randint(3, VOCAB, (samples, length), generator=torch.Generator().manual_seed(7))
    hidden, (first, second) = record_calls(model, blocks, tokens)
    with torch.no_grad():
        middle = [first(blocks[0], x) for x in hidden]
        targets = [second(blocks[1], x) for x in middle]
    units = [Unit(i, names[i], blocks[i], known_of(model, blocks[i]), (first, second)[i]) for i in range(2)]
    before = BlockTask(units[0], Held.all(hidden), middle)
    rounded = run_rounded(before, solved(before, "rtn", Grid(bits, GROUP)))
    return BlockTask(units[1], Held.all(rounded), targets)


def part(task: BlockTask, samples: list[int]) -> BlockTask:
    inputs, targets = ([values[index] for index in samples] for values in (task.inputs, task.targets))
    return BlockTask(task.unit, Held.all(inputs), targets)


@torch.no_grad()
def error(task: BlockTask, solution) -> float:
    """Squared, of the block's output, for each token as a share of the squared target, then the mean."""
    block = deepcopy(task.unit.block)
    for name, linear in block_linears(block).items():
        grid = solution.grids[name]
        scales, zeros = (part.double().repeat_interleave(GROUP, 1) for part in (grid.scales, grid.zeros))
        linear.weight.copy_((grid.codes.double() - zeros) * scales)
    shares = []
    for x, target in zip(task.inputs, task.targets, strict=True):
        off = (task.unit.call(block, x).double() - target.double()).square().sum(-1)
        shares.append(off / target.double().square().sum(-1))
    return float(torch.cat(shares).mean())


@pytest.mark.parametrize("bits", [3, 4])
def test_the_block_errs_less_on_what_was_learned_from_and_on_what_was_not(bits):
    task = second_block("llama", 32, bits)
    seen, unseen = part(task, list(range(24))), part(task, list(range(24, 32)))
    started = solved(seen, "gptq", Grid(bits, GROUP))
    solution = solved(seen, "learned", Grid(bits, GROUP))
    assert error(seen, solution) < 0.8 * error(seen, started)
    assert error(unseen, solution) < 0.9 * error(unseen, started)
    held = part(seen, split_samples(24)[1])
    assert solution.block.before == pytest.approx(error(held, started), rel=1e-4)
    assert solution.block.after == pytest.approx(error(held, solution), rel=1e-4)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_every_architecture_stays_on_the_grid_and_as_it_was(monkeypatch, model_type, overrides):
    monkeypatch.setattr(learned, "STEPS", 12)
    monkeypatch.setattr(learned, "CHECK_STEPS", 4)
    monkeypatch.setattr(learned, "CODE_RATE", 0.005)
    task = second_block(model_type, 7, 3, length=32, **overrides)  # too few to hold any back
    before = {name: parameter.clone() for name, parameter in task.unit.block.named_parameters()}
    solution = solved(task, "learned", Grid(3, GROUP))
    assert solution.block.after < solution.block.before
    assert solution.block.after == pytest.approx(error(task, solution), rel=1e-3)
    for name, linear in task.unit.linears.items():
        grid = solution.grids[name]
        assert grid.codes.shape == linear.weight.shape and grid.codes.dtype == grid.zeros.dtype == torch.uint8
        assert max(int(grid.codes.max()), int(grid.zeros.max())) < 8
        assert grid.scales.dtype == torch.bfloat16 and bool((grid.scales > 0).all())
    for name, parameter in task.unit.block.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad, name


def test_the_same_comes_out_whatever_was_drawn_before(monkeypatch):
    monkeypatch.setattr(learned, "STEPS", 10)
    monkeypatch.setattr(learned, "CHECK_STEPS", 5)
    task = second_block("llama", 16, 3, length=64)
    first = solved(task, "learned", Grid(3, GROUP))
    torch.rand(3)
    state = torch.random.get_rng_state()
    second = solved(task, "learned", Grid(3, GROUP))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.block == second.block and first.block.after < first.block.before
    for name, grid in first.grids.items():
        assert torch.equal(grid.codes, second.grids[name].codes) and torch.equal(grid.scales, second.grids[name].scales)


def test_what_ends_worse_is_thrown_away(monkeypatch):
    monkeypatch.setattr(learned, "STEPS", 4)
    monkeypatch.setattr(learned, "CHECK_STEPS", 2)
    monkeypatch.setattr(learned, "CODE_RATE", 5.0)
    task = second_block("llama", 8, 3, length=32)
    started, solution = (solved(task, name, Grid(3, GROUP)) for name in ("gptq", "learned"))
    assert solution.block.after == solution.block.before and solution.losses == started.losses
    assert all(torch.equal(grid.codes, started.grids[name].codes) for name, grid in solution.grids.items())


def test_losses_are_those_of_the_learned_codes(monkeypatch):
    monkeypatch.setattr(learned, "STEPS", 20)
    task = second_block("llama", 8, 3, length=64)
    solution = solved(task, "learned", Grid(3, GROUP))
    name = "self_attn.q_proj"
    with torch.no_grad():
        seen = torch.cat([task.unit.block.input_layernorm(x) for x in task.inputs]).double().flatten(0, 1)
    weight = task.unit.linears[name].weight.double()
    off = seen @ (solution.grids[name].dequantize().double() - weight).t()
    expected = float(off.square().sum() / (seen @ weight.t()).square().sum())
    assert solution.losses[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [3, 4])
def test_a_grid_starts_at_its_codes_and_moves_down_the_gradient(bits):
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(2))
    start = rtn(weight, Grid(bits, GROUP))
    moved = LearnedGrid(weight, start)
    assert torch.equal(moved.dequantize(), start.dequantize()) and torch.equal(moved.settled().codes, start.codes)

    gradient = torch.randn(12, 64, generator=torch.Generator().manual_seed(3))
    places, logs = moved.places.double(), moved.logs.double()
    moved.move(gradient, 1)
    # The first step of Adam is as long as the rate, whatever the gradient: its sign is all that counts.
    groups = gradient.double().view(12, -1, GROUP)
    expected = places - learned.CODE_RATE * groups.sign()
    inside = (expected > -learned.REACH) & (expected < 2**bits - 1 + learned.REACH)
    torch.testing.assert_close(moved.places.double()[inside], expected[inside], atol=1e-5, rtol=0)
    # d error / d log(scale) = sum of gradient * weight, the codes standing still.
    slope = (groups * start.dequantize().double().view_as(groups)).sum(-1)
    torch.testing.assert_close(moved.logs.double(), logs - learned.SCALE_RATE * slope.sign(), atol=1e-5, rtol=0)


def test_a_code_given_from_outside_is_kept_until_the_gradient_moves_it():
    weight = torch.full((1, GROUP), 0.4)
    weight[0, 0] = 1.0
    start = rtn(weight, Grid(3, GROUP))
    shifted = type(start)((start.codes - 1), start.zeros, start.scales, 3)
    grid = LearnedGrid(weight, shifted)
    assert torch.equal(grid.settled().codes, shifted.codes)
    exact = weight.double().view(1, 1, GROUP) / start.scales.double().unsqueeze(-1) + start.zeros.unsqueeze(-1)
    far = exact > shifted.codes.view(1, 1, GROUP) + learned.REACH
    assert bool(far.any()) and torch.equal(grid.places[far], (shifted.codes.view(1, 1, GROUP) + learned.REACH)[far])


@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 300])
def test_samples_are_held_back_evenly(count):
    seen, held = split_samples(count)
    if count < 8:
        assert seen == held == list(range(count))
        return
    assert sorted(seen + held) == list(range(count)) and len(held) == min(count // 8, 8)
    gaps = [after - before for before, after in zip(held, [*held[1:], count + held[0]], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_batches_go_through_all_samples_before_any_comes_again():
    batches = list(draw_batches([3, 5, 8, 9, 11], 2, 100))
    assert len(batches) == learned.STEPS and all(len(batch) == 2 for batch in batches)
    drawn = [sample for batch in batches for sample in batch]
    rounds = [drawn[index : index + 5] for index in range(0, len(drawn) // 5 * 5, 5)]
    assert all(sorted(each) == [3, 5, 8, 9, 11] for each in rounds) and len({tuple(each) for each in rounds}) > 1
    assert len(next(draw_batches([0, 1], 7, 100))) == 7
