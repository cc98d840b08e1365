"""What a checkpoint says that would make other text of it is read or refused by name, never passed over."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import CheckpointError
from tests.checkpoints.test_quantized_damage import edit_config, edit_scheme, edit_tensors

BACKEND = ReferenceBackend("cpu/torch")
NORM, EMBEDDING, PROJECTION = "model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj"


def edit_section(directory: Path, **changes) -> None:
    section = edit_config(directory)["quantization_config"] | changes
    edit_config(directory, quantization_config=section)


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_quantized(directory, BACKEND)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(quant_method="bitnet"), "says quant_method 'bitnet'; what is read here are compressed-tensors"),
        (dict(transform_config={"config_groups": {"R1": {}}}), "has a transform_config, which"),
        (dict(kv_cache_scheme={"num_bits": 8}), "has a kv_cache_scheme, which"),
        (dict(sparsity_config={"format": "sparse-24-bitmask"}), "has a sparsity_config, which"),
        (dict(sparsity_config=["2:4"]), "has a sparsity_config, which"),
        (dict(rotation="hadamard"), "says 'rotation' of the weights, which this program does not know"),
    ],
)
def test_what_changes_the_weights_meaning_is_refused(checkpoint, changes, words):
    edit_section(checkpoint, **changes)
    assert words in refusal(checkpoint)


def test_weights_of_another_type_and_groups_of_another_format(checkpoint):
    edit_scheme(checkpoint, type="float")
    assert "says weights of type 'float'; this program runs int" in refusal(checkpoint)
    edit_scheme(checkpoint, type="int")
    for change, words in (
        (dict(dynamic=True), "says weights that are quantized as they run (dynamic)"),
        (dict(dynamic=False, rotation=[1]), "says 'rotation' of the weights"),
    ):
        edit_scheme(checkpoint, **change)
        assert words in refusal(checkpoint)
    edit_scheme(checkpoint, rotation=None)
    section = edit_config(checkpoint)["quantization_config"]
    section["config_groups"]["group_0"]["format"] = "nvfp4-pack-quantized"
    edit_config(checkpoint, quantization_config=section)
    assert "has groups of format ['nvfp4-pack-quantized']" in refusal(checkpoint) or (
        "has groups of format ['nvfp4-pack-quantized', 'pack-quantized']" in refusal(checkpoint)
    )


def test_what_means_nothing_is_no_obstacle(checkpoint):
    """As other programs write them: empty, or saying that nothing is done."""
    edit_section(checkpoint, transform_config={}, kv_cache_scheme=None, sparsity_config={"format": "dense"})
    assert open_quantized(checkpoint, BACKEND).module is not None


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (NORM, torch.int64),
        (NORM, torch.bool),
        (NORM, torch.float8_e4m3fn),
        (EMBEDDING, torch.int8),
        (f"{PROJECTION}.weight_scale", torch.int32),
        (f"{PROJECTION}.weight_scale", torch.uint8),
    ],
)
def test_numbers_of_another_kind_are_refused(checkpoint, name, dtype):
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    assert f"{name} is stored as {dtype}, not as floats" in refusal(checkpoint)


def test_packed_weights_of_another_kind_are_refused(checkpoint):
    name = f"{PROJECTION}.weight_packed"
    for dtype in (torch.float8_e4m3fn, torch.float16, torch.int64):
        edit_tensors(checkpoint, lambda tensors, dtype=dtype: tensors.update({name: tensors[name].to(dtype)}))
        assert f"{name}: packed weights have to be int32, not {dtype}" in refusal(checkpoint)
        edit_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(torch.int32)}))


def test_what_a_model_gives_beside_its_logits_is_not_for_its_files_to_say(checkpoint):
    """A configuration may ask for tuples, attention weights or hidden states; whoever runs the model knows nothing."""
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        before = open_quantized(checkpoint, BACKEND).module(tokens).logits
        edit_config(checkpoint, return_dict=False, output_attentions=True, output_hidden_states=True)
        found = open_quantized(checkpoint, BACKEND).module(tokens)
    assert torch.equal(found.logits, before) and found.attentions is None and found.hidden_states is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("part", ["norms", "all"])
def test_floats_of_other_widths_are_cast(checkpoint, dtype, part):
    """Norms in float32 beside a bfloat16 model, or a checkpoint that is float16 throughout."""
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        before = open_quantized(checkpoint, BACKEND).module(tokens).logits

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and (part == "all" or "norm" in name):
                tensors[name] = tensor.to(dtype)

    edit_tensors(checkpoint, widen)
    stored = load_file(checkpoint / "model.safetensors")
    assert stored[NORM].dtype == dtype
    with torch.inference_mode():
        after = open_quantized(checkpoint, BACKEND).module(tokens).logits
    assert after.dtype == before.dtype == torch.bfloat16
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)
