"""Experts that few tokens reach: gate and up are given what the layer reads, down is rounded, and it is said so."""

import pytest
import torch

from scales.experts import STARVED_SHARE, feed_starved
from scales.statistics import InputStatistics, StandIn

WIDTHS = {"gate_proj": 16, "up_proj": 16, "down_proj": 8}
TOKENS = 1000


def seen_on(x: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics.empty(x.shape[1])
    statistics.add(x.float())
    statistics.complete()
    return statistics


def block(counts: list[int]) -> tuple[dict[str, InputStatistics], dict[str, int], list[torch.Tensor]]:
    """Attention, a shared expert, and experts that so many tokens reached; what each expert read, float64."""
    generator = torch.Generator().manual_seed(0)
    statistics = {"self_attn.q_proj": seen_on(torch.randn(TOKENS, 16, generator=generator))}
    linears, inputs = {"self_attn.q_proj": 16}, []
    for index, count in enumerate(counts):
        x = torch.randn(count, 16, generator=generator, dtype=torch.float64) * (index + 1)
        inputs.append(x)
        linears |= {f"mlp.experts.{index}.{name}": width for name, width in WIDTHS.items()}
        if count:
            reading = seen_on(x)
            statistics[f"mlp.experts.{index}.gate_proj"] = statistics[f"mlp.experts.{index}.up_proj"] = reading
            statistics[f"mlp.experts.{index}.down_proj"] = seen_on(torch.randn(count, 8, generator=generator))
    linears["mlp.shared_expert.up_proj"] = 16
    statistics["mlp.shared_expert.up_proj"] = seen_on(torch.randn(TOKENS, 16, generator=generator))
    return statistics, linears, inputs


def test_gate_and_up_are_given_the_inputs_of_all_experts():
    counts = [400, 0, 4, 600]
    statistics, linears, inputs = block(counts)
    before = dict(statistics)
    feed_starved(statistics, linears, TOKENS)
    every = torch.cat(inputs)
    for index in (1, 2):
        gate, up = (statistics[f"mlp.experts.{index}.{name}_proj"] for name in ("gate", "up"))
        assert gate is up, "read together, they are solved together"
        assert gate.stand_in is StandIn.LAYER and gate.tokens == sum(counts)
        torch.testing.assert_close(gate.gram.double(), every.t() @ every, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(gate.sum_abs.double(), every.abs().sum(0), rtol=1e-5, atol=1e-3)
    kept = [name for name in before if ".1." not in name and ".2." not in name]
    assert all(statistics[name] is before[name] and before[name].stand_in is None for name in kept)
    assert statistics.keys() == linears.keys()


@pytest.mark.parametrize("count", [0, 4])
def test_down_is_told_nothing_so_that_it_is_rounded(count):
    statistics, linears, _ = block([500, count])
    feed_starved(statistics, linears, TOKENS)
    down = statistics["mlp.experts.1.down_proj"]
    assert down.stand_in is StandIn.NONE and down.tokens == count
    assert torch.equal(down.gram, torch.eye(8)) and torch.equal(down.sum_abs, torch.ones(8))
    assert statistics["mlp.experts.0.down_proj"].stand_in is None


def test_how_few_are_too_few():
    enough = round(STARVED_SHARE * TOKENS)
    assert enough == 5
    statistics, linears, _ = block([enough, enough - 1])
    feed_starved(statistics, linears, TOKENS)
    for name in WIDTHS:
        assert statistics[f"mlp.experts.0.{name}"].stand_in is None
        assert statistics[f"mlp.experts.1.{name}"].stand_in is not None


def test_of_a_layer_that_no_token_reached_nothing_is_known():
    statistics, linears, _ = block([0, 0])
    feed_starved(statistics, linears, TOKENS)
    for index in range(2):
        for name, width in WIDTHS.items():
            found = statistics[f"mlp.experts.{index}.{name}"]
            assert found.stand_in is StandIn.NONE and torch.equal(found.gram, torch.eye(width))


def test_a_block_without_experts_is_left_alone():
    statistics, linears, _ = block([])
    before = dict(statistics)
    feed_starved(statistics, linears, TOKENS)
    assert statistics == before
