import pytest
import torch
from torch import nn

from architectures.registry import find_family
from qlinear.errors import ScalesError
from scales.fold import apply_clip, apply_scale, consumer_scale, reduce_statistic, scale_length
from tests.tiny import VARIANTS, tiny_model, tiny_tokens

BF16_ROUNDING = 2.0**-8  # half the spacing of 8 significant bits, relative


def random_scale(length: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).exp()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(tiny_tokens()).logits.double()


def relative(got: torch.Tensor, reference: torch.Tensor) -> float:
    return ((got - reference).norm() / reference.norm()).item()


def edge_named(model, prev: str):
    return next(edge for edge in find_family(model.config).edges if edge.prev == prev)


def first_block(model) -> nn.Module:
    return model.get_submodule(find_family(model.config).blocks)[0]


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_folding_every_edge_leaves_the_logits(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    family = find_family(model.config)
    before = logits(model)
    seed = 0
    for block in model.get_submodule(family.blocks):
        for edge in family.edges:
            weights = {name: block.get_submodule(name).weight.clone() for name in (edge.prev, *edge.layers)}
            scale = random_scale(scale_length(block, edge, model.config), seed := seed + 1)
            apply_scale(block, edge, scale, model.config)
            for name, weight in weights.items():
                assert relative(block.get_submodule(name).weight, weight) > 0.1, name
    assert seed > 0
    assert relative(logits(model), before) < 1e-5


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_half_a_fold_shows_in_the_logits(model_type, overrides):
    """The test above is as sharp as this: a producer or consumer left out would not pass it unseen."""
    model = tiny_model(model_type, **overrides)
    block = first_block(model)
    before = logits(model)
    for edge in find_family(model.config).edges:
        saved = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        for name in (edge.prev, *edge.layers):
            scale = random_scale(scale_length(block, edge, model.config))
            apply_scale(block, edge, scale, model.config)
            block.load_state_dict({key: saved[key] for key in saved if key.startswith(f"{name}.")}, strict=False)
            assert relative(logits(model), before) > 1e-3, (edge.prev, name)
            block.load_state_dict(saved)


def test_shared_value_heads():
    """4 query heads of width 16 over 2 k/v heads: written out against the view the attention itself takes."""
    model = tiny_model("llama")
    edge = edge_named(model, "self_attn.v_proj")
    assert scale_length(first_block(model), edge, model.config) == 32
    mean_abs = torch.rand(64)
    reduced = reduce_statistic(edge, mean_abs, model.config)
    mean_over_heads = mean_abs.double().view(2, 2, 16).mean(1).flatten()
    torch.testing.assert_close(reduced.double(), mean_over_heads, rtol=1e-6, atol=0)
    scale = random_scale(32)
    spread = consumer_scale(edge, scale, model.config)
    assert torch.equal(spread.view(2, 2, 16), scale.view(2, 1, 16).expand(2, 2, 16))


def test_one_entry_per_channel_where_nothing_is_shared():
    model = tiny_model("opt")
    for edge in find_family(model.config).edges:
        vector = random_scale(scale_length(first_block(model), edge, model.config))
        assert torch.equal(consumer_scale(edge, vector, model.config), vector)
        assert torch.equal(reduce_statistic(edge, vector, model.config), vector)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_reducing_undoes_spreading(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    block = first_block(model)
    for edge in find_family(model.config).edges:
        scale = random_scale(scale_length(block, edge, model.config))
        spread = consumer_scale(edge, scale, model.config)
        assert all(spread.shape == (block.get_submodule(name).in_features,) for name in edge.layers)
        torch.testing.assert_close(reduce_statistic(edge, spread, model.config), scale)


def test_only_the_rows_of_v_and_their_bias_change():
    """Falcon with 2 k/v heads of width 16: slots q q k v, so rows 48-63 and 112-127 are v's."""
    model = tiny_model("falcon", new_decoder_architecture=True, num_kv_heads=2, bias=True)
    block, edge = first_block(model), edge_named(model, "self_attention.query_key_value")
    linear = block.self_attention.query_key_value
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    scale = random_scale(32)
    apply_scale(block, edge, scale, model.config)
    divisor = torch.ones(128, dtype=torch.float64)
    divisor[48:64], divisor[112:128] = scale[:16].double(), scale[16:].double()
    torch.testing.assert_close(linear.weight.double(), weight.double() / divisor[:, None], rtol=1e-6, atol=0)
    torch.testing.assert_close(linear.bias.double(), bias.double() / divisor, rtol=1e-6, atol=0)
    untouched = divisor == 1
    assert torch.equal(linear.weight[untouched], weight[untouched])


@pytest.mark.parametrize(("model_type", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_bf16_is_rounded_once(model_type, offset):
    model = tiny_model(model_type).to(torch.bfloat16)
    block, edge = first_block(model), edge_named(model, "input_layernorm")
    norm, query = block.input_layernorm, block.self_attn.q_proj
    norm_before, query_before = norm.weight.double(), query.weight.double()
    scale = random_scale(64)
    apply_scale(block, edge, scale, model.config)
    assert norm.weight.dtype == query.weight.dtype == torch.bfloat16
    norm_exact = (norm_before + offset) / scale.double() - offset
    query_exact = query_before * scale.double()
    for got, exact in ((norm.weight, norm_exact), (query.weight, query_exact)):
        assert ((got.double() - exact).abs() <= 1.001 * BF16_ROUNDING * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("shape", [(1,), (64,), (32, 1), ()])
def test_scales_of_another_model_change_nothing(shape):
    model = tiny_model("llama")
    block, edge = first_block(model), edge_named(model, "self_attn.v_proj")
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    with pytest.raises(ScalesError) as error:
        apply_scale(block, edge, torch.full(shape, 2.0), model.config)
    assert str(error.value) == (
        f"scales of shape {shape} for self_attn.v_proj -> self_attn.o_proj, which needs (32,);"
        " they belong to another model"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clip_clamps_each_group_of_each_row(dtype):
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(12, 5, bias=False, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(5, 12, generator=generator))
    # bfloat16 limits, so that a limit itself is a value the weight can have
    clip_max = torch.rand(5, 3, 1, generator=generator).to(torch.bfloat16).float()
    reference = linear.weight.double().detach().clone()
    for row in range(5):
        for group in range(3):
            limit = clip_max[row, group, 0].double().item()
            for column in range(4 * group, 4 * group + 4):
                reference[row, column] = min(max(reference[row, column].item(), -limit), limit)
    assert not torch.equal(reference, linear.weight.double())
    apply_clip(linear, clip_max)
    assert linear.weight.dtype == dtype
    assert torch.equal(linear.weight.double(), reference)


@pytest.mark.parametrize("shape", [(5, 3), (5, 5, 1), (4, 3, 1), (5, 3, 2), (5, 0, 1), (15,)])
def test_clips_of_another_model_are_refused(shape):
    linear = nn.Linear(12, 5)
    before = linear.weight.detach().clone()
    with pytest.raises(ScalesError) as error:
        apply_clip(linear, torch.zeros(shape))
    assert str(error.value) == (
        f"clips of shape {shape} for a weight of shape (5, 12), which needs (5, 12 / group_size, 1);"
        " they belong to another model"
    )
    assert torch.equal(linear.weight, before)
