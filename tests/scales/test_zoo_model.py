"""What a scales file says of a model is checked before anything is changed, and sorted by block."""

import pytest
import torch

from qlinear.errors import ScalesError
from scales.zoo import ScaleFile
from tests.scales.scale_files import assert_one_line, blocks_of, by_block, file_for
from tests.tiny import tiny_model

ONES = torch.ones(4)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def test_entries_are_sorted_by_block_whatever_their_order(llama):
    file = file_for(llama)
    sorted_ = by_block(ScaleFile(file.scales[::-1], file.clips[::-1]), llama)
    for (unit, _), block in zip(blocks_of(llama).items(), sorted_, strict=True):
        found = {(f"{unit}.{edge.prev}", tuple(f"{unit}.{n}" for n in edge.layers)): v for edge, v in block.scales}
        expected = {(prev, layers): v for prev, layers, v in file.scales if prev.startswith(unit)}
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
        clips = {name: limits for name, limits in file.clips if name.startswith(unit)}
        assert {f"{unit}.{name}" for name in block.clips} == clips.keys()
        assert all(torch.equal(limits, clips[f"{unit}.{name}"]) for name, limits in block.clips.items())


def test_block_ten_is_not_block_one():
    model = tiny_model("llama", num_hidden_layers=11)
    file = file_for(model)
    for index, block in enumerate(by_block(file, model)):
        own = [vector for prev, _, vector in file.scales if prev.split(".")[2] == str(index)]
        assert len(own) == 4
        assert all(torch.equal(found, vector) for (_, found), vector in zip(block.scales, own, strict=True))


def broken(file: ScaleFile, **changes) -> ScaleFile:
    """The file with the tensor of its first scale or first clip replaced."""
    scales, clips = list(file.scales), list(file.clips)
    if "scale" in changes:
        scales[0] = (*scales[0][:2], changes["scale"](scales[0][2]))
    if "clip" in changes:
        clips[0] = (clips[0][0], changes["clip"](clips[0][1]))
    return ScaleFile(scales, clips)


def first_to(value: float):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scale=first_to(float("nan"))), "input_layernorm that is not a positive finite number"),
        (dict(scale=first_to(float("inf"))), "not a positive finite number"),
        (dict(scale=first_to(0.0)), "not a positive finite number"),
        (dict(scale=first_to(-1.0)), "not a positive finite number"),
        (dict(clip=first_to(float("nan"))), "v_proj that is negative or not finite"),
        (dict(clip=first_to(-0.5)), "v_proj that is negative or not finite"),
        (dict(scale=lambda t: t[:-1]), r"\(63,\) scales for .*input_layernorm, the model needs \(64,\)"),
        (dict(scale=lambda t: t.view(1, -1)), r"\(1, 64\) scales for .*the model needs \(64,\)"),
        (dict(clip=lambda t: t[:-1]), r"clips \(31, 2, 1\) for .*v_proj, the model needs \(32, 2, 1\)"),
        (dict(clip=lambda t: t[:, :0]), "made for another model"),
        (dict(clip=lambda t: t.squeeze(-1)), "made for another model"),
        (dict(clip=lambda t: t[:, :1]), "made for group size 64, not 32"),
    ],
)
def test_bad_values_and_shapes(change, message, llama):
    with pytest.raises(ScalesError, match=message) as error:
        by_block(broken(file_for(llama), **change), llama)
    assert_one_line(error)


def test_a_file_for_another_group_size(llama):
    with pytest.raises(ScalesError, match=r"made for group size 32, not 64 \(layer model.layers.0"):
        by_block(file_for(llama, group_size=32), llama, group_size=64)


@pytest.mark.parametrize(
    ("made_for", "overrides", "message"),
    [
        ("llama", dict(hidden_size=96), "another model"),
        ("llama", dict(num_hidden_layers=3), r"model.layers.2.input_layernorm, which is in no decoder block"),
        ("llama", dict(num_hidden_layers=1), r"nothing for model.layers.1: .* a model with fewer blocks"),
        ("opt", {}, r"model.decoder.layers.0.self_attn_layer_norm, which is in no decoder block"),
        ("phi3", {}, r"input_layernorm -> model.layers.0.self_attn.qkv_proj, which cannot be folded"),
        ("llama", dict(num_key_value_heads=4), "v_proj.*another model"),
    ],
)
def test_a_file_for_another_model(made_for, overrides, message, llama):
    with pytest.raises(ScalesError, match=message) as error:
        by_block(file_for(tiny_model(made_for, **overrides)), llama)
    assert_one_line(error)


def test_a_file_that_says_which_model_it_is_for_may_leave_blocks_out(llama):
    """Blocks that fell back to plain rounding are not in it."""
    file = file_for(llama)
    file.scales, file.clips = file.scales[:4], []
    file.meta = {"fingerprint": "ab"}
    assert [len(block.scales) for block in by_block(file, llama)] == [4, 0]


@pytest.mark.parametrize("name", ["model.layers.0.mlp", "model.layers.0.mlp.fc1", "model.layers.1."])
def test_clips_of_what_is_no_linear(name, llama):
    file = ScaleFile([], [(name, torch.ones(4, 2, 1))])
    with pytest.raises(ScalesError, match=f"clips {name}, which this model does not have"):
        by_block(file, llama)


@pytest.mark.parametrize("name", ["lm_head", "model.norm", "", "model.layers.0", "model.layers.7.mlp"])
def test_names_outside_the_blocks(name, llama):
    for file in (ScaleFile([], [(name, ONES)]), ScaleFile([(name, ("model.layers.0.mlp.up_proj",), ONES)])):
        with pytest.raises(ScalesError, match="in no decoder block of this model"):
            by_block(file, llama)


def test_an_edge_across_two_blocks(llama):
    across = ("model.layers.0.mlp.up_proj", ("model.layers.1.mlp.down_proj",), ONES)
    with pytest.raises(ScalesError, match="in no decoder block"):
        by_block(ScaleFile([across]), llama)


def test_an_edge_given_twice_is_not_folded_twice(llama):
    file = file_for(llama)
    with pytest.raises(ScalesError, match="scales model.layers.0.input_layernorm -> .* twice"):
        by_block(ScaleFile([*file.scales, file.scales[0]], file.clips), llama)


@pytest.mark.parametrize(("model_type", "activation"), [("bloom", "mlp.gelu_impl"), ("falcon", "mlp.act")])
def test_scaled_activations_of_llm_awq(model_type, activation):
    """llm-awq puts a scaled GELU in front of fc2, for which a checkpoint has no place."""
    file = ScaleFile([(f"transformer.h.0.{activation}", ("transformer.h.0.mlp.dense_4h_to_h",), torch.ones(128))])
    with pytest.raises(ScalesError, match=f"{activation} is no norm or linear .* use `awq=run`") as error:
        by_block(file, tiny_model(model_type))
    assert_one_line(error)
