"""AWQ on whole blocks of tiny models: what is found, what is kept, and when the block is given up."""

from copy import deepcopy

import pytest
import torch

from architectures.linears import block_linears
from architectures.registry import find_family
from scales import fold
from scales.awq import quantize_block, watched_modules
from scales.calls import record_calls
from scales.observe import observe_block
from scales.search import Rounding
from tests.scales.reference import round_to_grid
from tests.tiny import VARIANTS, known_of, tiny_model, tiny_tokens

GROUP = 16  # divides every width of the tiny models


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return round_to_grid(weight, bits=3, group_size=GROUP)


def outlier_model(model_type: str, **overrides):
    """A tiny model, the norms of which make some channels much larger than others, as in trained models."""
    model = tiny_model(model_type, **overrides)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            generator = torch.Generator().manual_seed(len(name.partition("layers.")[2]))
            parameter.data *= torch.randn(parameter.shape, generator=generator).mul(1.5).exp()
    return model


def observed(model):
    """The first block of a model, what it showed on some tokens, and how it is called."""
    blocks = list(model.get_submodule(find_family(model.config).blocks))
    hidden, calls = record_calls(model, blocks, tiny_tokens(4, 24))
    block = blocks[0].requires_grad_(False)
    return block, observe_block(
        block, block_linears(block), watched_modules(known_of(model, block)), hidden, calls[0], 2
    )


def quantize(model, block, seen, quantizer=rounded):
    """Search, and clip what was found, as plain rounding has it."""
    known = known_of(model, block)
    roundings = dict.fromkeys(known.linears, Rounding(quantizer, GROUP))
    found = quantize_block(block, known, model.config, seen, roundings)
    for name, limits in found.clips.items():
        fold.apply_clip(block.get_submodule(name), limits)
    return found


@torch.no_grad()
def mean_output_error(block, seen, quantizer=rounded) -> float:
    """Mean squared difference of a copy with rounded linears to the outputs observed, in float64."""
    copy = deepcopy(block)
    for linear in block_linears(copy).values():
        linear.weight.copy_(quantizer(linear.weight))
    pairs = [(call(copy, hidden).double(), output.double()) for hidden, call, output in seen.samples[""]]
    return float(torch.stack([(found - output).square().mean() for found, output in pairs]).mean())


def test_nothing_is_kept_of_linears_whose_gram_matrix_tells_all():
    model = tiny_model("llama")
    assert watched_modules(known_of(model, model.model.layers[0])) == ("self_attn", "mlp", "")


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_a_block_after_awq(model_type, overrides):
    model = outlier_model(model_type, **overrides)
    block, seen = observed(model)
    fresh = deepcopy(block)
    found = quantize(model, block, seen)

    # The errors are those of the block with its linears rounded, before and after.
    assert found.error_rtn == pytest.approx(mean_output_error(fresh, seen), rel=1e-3)
    assert found.error_awq == pytest.approx(mean_output_error(block, seen), rel=1e-3)
    assert not found.fell_back and found.error_awq < 0.9 * found.error_rtn

    # Folding what was found into a fresh copy gives the same block, bit for bit.
    family = find_family(model.config)
    assert [edge for edge, _ in found.scales] == list(family.edges)
    for edge, vector in found.scales:
        fold.apply_scale(fresh, edge, vector, model.config)
    linears = block_linears(fresh)
    assert found.clips.keys() == linears.keys() - set(family.unclipped)
    for name, limits in found.clips.items():
        fold.apply_clip(linears[name], limits)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, block.state_dict()[name]), name
    assert found.losses.keys() == linears.keys()


def test_awq_gains_on_a_block_with_outlier_channels():
    model = outlier_model("llama")
    block, seen = observed(model)
    found = quantize(model, block, seen)
    assert not found.fell_back
    assert found.error_awq < 0.7 * found.error_rtn
    # q, k and v were scaled by one vector; so were gate and up. Only scaled layers have a ratio.
    ratios = {name.rpartition(".")[2]: loss.ratio for name, loss in found.losses.items()}
    assert ratios["q_proj"] == ratios["k_proj"] == ratios["v_proj"] > 0
    assert ratios["gate_proj"] == ratios["up_proj"] > 0
    assert ratios["o_proj"] is not None and ratios["down_proj"] is not None


def test_losses_are_relative_output_errors_over_all_tokens():
    model = outlier_model("llama")
    block, seen = observed(model)
    fresh = deepcopy(block)
    found = quantize(model, block, seen)

    def relative(weight, gram) -> float:
        """|x E^T|^2 / |x W^T|^2 through a square root of the Gram matrix, in float64."""
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp(min=0).sqrt()
        error = (rounded(weight) - weight).double()
        return float((error @ root).square().sum() / (weight.double() @ root).square().sum())

    name = "self_attn.q_proj"  # not clipped, so its float weight is its folded one
    gram = seen.statistics[name].gram.double()
    assert found.losses[name].loss_rtn == pytest.approx(relative(fresh.get_submodule(name).weight, gram), rel=1e-3)
    scale = next(vector for edge, vector in found.scales if name in edge.layers)
    folded = block.get_submodule(name).weight
    assert found.losses[name].loss_awq == pytest.approx(relative(folded, gram / scale.outer(scale).double()), rel=1e-3)
    assert all(loss.loss_awq <= loss.loss_rtn for loss in found.losses.values())


def assert_fell_back(found, block, before) -> None:
    assert found.fell_back and found.scales == [] and found.clips == {}
    assert block.state_dict().keys() == before.keys()
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(loss.loss_awq == loss.loss_rtn and loss.ratio is None for loss in found.losses.values())


@pytest.mark.parametrize(("model_type", "overrides"), [("llama", {}), ("gemma2", {}), ("falcon", {}), ("bloom", {})])
def test_a_block_that_awq_makes_worse_is_left_as_it_was(model_type, overrides):
    """The samples are made to call the plainly rounded block perfect, so that whatever AWQ changes is worse."""
    model = outlier_model(model_type, **overrides)
    block, seen = observed(model)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    plain = deepcopy(block)
    with torch.no_grad():
        for linear in block_linears(plain).values():
            linear.weight.copy_(rounded(linear.weight))
    seen.samples[""] = [(hidden, call, call(plain, hidden)) for hidden, call, _ in seen.samples[""]]
    found = quantize(model, block, seen)
    assert found.error_rtn == pytest.approx(0, abs=1e-12) and found.error_awq > 1e-6
    assert_fell_back(found, block, before)


def test_a_comparison_that_comes_out_as_nan_keeps_the_block():
    model = outlier_model("llama")
    block, seen = observed(model)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    seen.samples[""] = [(hidden, call, output * torch.nan) for hidden, call, output in seen.samples[""]]
    assert_fell_back(quantize(model, block, seen), block, before)


def test_a_quantizer_that_loses_nothing_changes_nothing():
    model = outlier_model("llama")
    block, seen = observed(model)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    found = quantize(model, block, seen, lambda weight: weight)
    assert found.error_awq == found.error_rtn == pytest.approx(0, abs=1e-10)
    assert all(torch.equal(vector, torch.ones_like(vector)) for _, vector in found.scales)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
