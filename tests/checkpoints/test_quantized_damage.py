"""Checkpoints that were edited or damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import AwqError, CheckpointError, ModelError

BACKEND = ReferenceBackend("cpu/torch")


def assert_refused(directory: Path, kind: type[AwqError], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        open_quantized(directory, BACKEND)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def edit_config(directory: Path, **changes) -> dict:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))
    return config


def edit_scheme(directory: Path, **changes) -> None:
    """Change what the config says of the weights of its first group."""
    section = edit_config(directory)["quantization_config"]
    section["config_groups"]["group_0"]["weights"] |= changes
    edit_config(directory, quantization_config=section)


def edit_tensors(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_bits=5), r"says 5 bits; this program runs \(3, 4\)"),
        (dict(num_bits=3), r"weight_packed is \(64, 16\) on disk, \(64, 12\) by the config \(3 bits"),
        (dict(num_bits="4"), "says 4 bits"),
        (dict(num_bits=None), "says None bits"),
        (dict(group_size=1000000), r"do not make groups of \[64, 1000000\] over 128 inputs"),
        (dict(group_size=0), "says group size 0"),
        (dict(group_size=-1), "says group size -1"),
        (dict(group_size=[32]), "says group size"),
        (dict(group_size=128), r"scales \(64, 4\) do not make groups of \[64, 128\] over 128 inputs"),
        (dict(symmetric=True), r"weight_zero_point is \(\d+, \d\) on disk, None by the config"),
        (dict(symmetric=None), "says symmetric None; it has to be true or false"),
        (dict(symmetric=0), "says symmetric 0"),
        (dict(strategy="channel", group_size=None), r"scales \(64, 4\) do not make groups of \[64, 128\]"),
        (dict(strategy="block"), "says strategy 'block'; group and channel are what this program runs"),
    ],
)
def test_an_edited_scheme(checkpoint, changes, message):
    edit_scheme(checkpoint, **changes)
    assert_refused(checkpoint, CheckpointError, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_bits=3), r"weight_packed is \(\d+, 8\) on disk, \(\d+, 6\) by .* \(3 bits"),
        (dict(symmetric=True), r"weight_zero_point is \(\d+, \d\) on disk, None by the config"),
    ],
)
def test_all_groups_said_to_be_of_another_grid(checkpoint, change, message):
    section = edit_config(checkpoint)["quantization_config"]
    for group in section["config_groups"].values():
        group["weights"] |= change
    edit_config(checkpoint, quantization_config=section)
    assert_refused(checkpoint, CheckpointError, message)


@pytest.mark.parametrize(
    "section",
    [None, 7, {}, {"format": "int-quantized"}, {"format": "pack-quantized"},
     {"format": "pack-quantized", "config_groups": {}}, {"format": "pack-quantized", "config_groups": []},
     {"format": "pack-quantized", "config_groups": {"a": 5}},
     {"format": "pack-quantized", "config_groups": {"a": {"weights": None}}}],
    ids=repr,
)  # fmt: skip
def test_a_config_without_a_scheme(checkpoint, section):
    edit_config(checkpoint, quantization_config=section)
    assert_refused(checkpoint, CheckpointError, "config.json has no (pack-quantized|config_groups)")


def test_quantized_activations(checkpoint):
    section = edit_config(checkpoint)["quantization_config"]
    section["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "int"}
    edit_config(checkpoint, quantization_config=section)
    assert_refused(checkpoint, CheckpointError, "quantizes activations too")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_hidden_layers=3, layer_types=None), "has no tensor model.layers.2"),
        (dict(num_hidden_layers=1, layer_types=None), "quantizes model.layers.1.* which the model .* does not have"),
        (dict(num_hidden_layers=10**4, layer_types=None), "names 10000 layers but the weights hold"),
        (dict(hidden_size=96), "do not make groups of|on disk"),
        (dict(vocab_size=10**6), r"lm_head.weight_packed is .* on disk, \(1000000, 8\) by the config"),
        (dict(model_type="llama"), "k_proj.bias is .* on disk, None by the config"),
        (dict(model_type="no_such_model"), "describes no model that can be opened"),
        (dict(hidden_act="no_such_function"), "describes no model that can be opened"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights(checkpoint, changes, message):
    edit_config(checkpoint, **changes)
    assert_refused(checkpoint, AwqError, message)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\x00\xff"])
def test_a_config_that_is_not_json(checkpoint, content):
    (checkpoint / "config.json").write_text(content, encoding="latin-1")
    assert_refused(checkpoint, CheckpointError, "config.json (cannot be read|is not a JSON object)")


def test_no_checkpoint_at_all(tmp_path):
    assert_refused(tmp_path / "absent", CheckpointError, "there is no such directory; quantize a model to make one")
    assert_refused(tmp_path, CheckpointError, "has no config.json; quantize a model to make one")


@pytest.mark.parametrize("target", ["../../x", "/etc/passwd", "..", "sub/model.safetensors", ""])
def test_an_index_that_points_elsewhere(checkpoint, target):
    names = list(load_file(checkpoint / "model.safetensors"))
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "x")
    index = {"weight_map": dict.fromkeys(names, target)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(checkpoint, ModelError, "only plain file names beside it are read")


LAYER = "model.layers.0.mlp.up_proj"


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def reshape(name, rows):
    return lambda tensors: tensors.update({name: tensors[name][:rows].contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), "scales None do not make groups"),
        (lambda t: t.pop(f"{LAYER}.weight_zero_point"), "weight_zero_point is None on disk"),
        (lambda t: t.pop("model.layers.0.self_attn.q_proj.bias"), r"q_proj.bias is None on disk, \(64,\)"),
        (lambda t: t.pop("model.norm.weight"), "has no tensor model.norm.weight"),
        (lambda t: t.update({f"{LAYER}.bias": torch.zeros(128)}), r"up_proj.bias is \(128,\) on disk, None by"),
        (reshape(f"{LAYER}.weight_packed", 100), r"weight_packed is \(100, 8\) on disk, \(128, 8\) by the config"),
        (reshape("model.norm.weight", 32), r"model.norm.weight is \(32,\) on disk, \(64,\) by the config"),
        (reshape("model.layers.0.self_attn.q_proj.bias", 1), r"q_proj.bias is \(1,\) on disk"),
        (cast(f"{LAYER}.weight_packed", torch.float32), "have to be int32, not torch.float32"),
        (lambda t: t[f"{LAYER}.weight_scale"].fill_(float("nan")), "weight_scale holds a value that is not finite"),
        (lambda t: t.update({"model.norm.weight_packed": torch.zeros(1)}), "quantizes model.norm, which"),
        (
            lambda t: t.update({f"{LAYER}.weight": torch.zeros(128, 64)}),
            f"holds {LAYER}.weight, for which .* no place",
        ),
        (
            lambda t: t.update({f"{LAYER}.weight_shape": torch.tensor([1, 7])}),
            r"weight_shape says \[1, 7\], the config",
        ),
        (cast("model.norm.weight", torch.int32), "norm.weight is stored as torch.int32, not as floats"),
        (lambda t: [t.pop(name) for name in list(t) if name.endswith("_packed")], "holds no quantized layer"),
    ],
)
def test_tensors_that_do_not_fit_each_other(checkpoint, change, message):
    edit_tensors(checkpoint, change)
    assert_refused(checkpoint, CheckpointError, message)


def test_a_truncated_weights_file(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(checkpoint, ModelError, "not a whole safetensors file")


@pytest.mark.parametrize("content", [None, "", "[]", "nonsense"])
def test_a_missing_or_foreign_recipe_is_no_obstacle(checkpoint, content):
    recipe = checkpoint / "awq_recipe.json"
    recipe.unlink() if content is None else recipe.write_text(content)
    loaded = open_quantized(checkpoint, BACKEND)
    assert loaded.recipe == {} and loaded.flash_attention is True
