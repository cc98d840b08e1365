"""Files that are cut off, foreign, hostile or made for something else: one line, status 2, nothing run or left."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scales import zoo
from tests.awq_cli.conftest import CALIBRATION


def edit_json(path: Path, *keys, value) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def edit_tensor(path: Path, name: str, value: float) -> None:
    """Put `value` into the middle of a stored tensor."""
    tensors = load_file(path)
    flat = tensors[name].view(-1)
    flat[len(flat) // 2] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def copied(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture
def checkpoint(rounded, tmp_path) -> Path:
    return Path(shutil.copytree(rounded, tmp_path / "checkpoint"))


# The float model.


def quantize_error(run, model: Path, *more) -> str:
    error = run("--task", "quantize", "--model_name", model, *more).error
    assert run.left() == []
    return error


@pytest.mark.parametrize("awq", [("--awq", "none"), CALIBRATION])
def test_nan_in_a_weight(run, copied, awq):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensor(copied / "model.safetensors", name, float("nan"))
    assert f"{name} holds NaN or infinite weights" in quantize_error(run, copied, *awq)


def test_a_model_that_is_cut_off(run, copied):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    error = quantize_error(run, copied, "--awq", "none")
    assert error.startswith(f"{copied}/model.safetensors is not a whole safetensors file")


def test_a_model_that_does_not_write_text(run, copied):
    edit_json(copied / "config.json", "architectures", value=["LlamaForSequenceClassification"])
    assert quantize_error(run, copied) == (
        f"{copied} is not a causal language model (config.json names LlamaForSequenceClassification)"
    )


def test_a_model_that_is_quantized_already(run, checkpoint):
    error = quantize_error(run, checkpoint)
    assert error == f"{checkpoint} is already quantized; give the float model it was made from"


def test_gguf_files(run, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert quantize_error(run, path) == f"{path} is not a GGUF file (it does not start with GGUF)"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (5).to_bytes(8, "little") * 2)
    assert quantize_error(run, path) == (f"{path} is cut off or damaged: its header says more than its 24 bytes hold")


# The scales file.


class Hostile:
    """Makes a file when it is unpickled without care."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_scales_file_that_would_run_code(run, model, tmp_path, save, recwarn):
    scales, marker = tmp_path / "hostile.pt", tmp_path / "ran"
    save({"scale": [], "clip": [], "meta": {"note": Hostile(marker)}}, scales)
    error = quantize_error(run, model, "--awq", "load", "--scales", scales)
    assert error == f"scales file {scales} is refused: it holds more than tensors and plain containers, or is damaged"
    assert not marker.exists()
    assert recwarn.list == []  # torch has something to say of old pickles, which is not for the terminal


@pytest.fixture(scope="session")
def scales_file(model, text_file, tmp_path_factory) -> Path:
    from tests.awq_cli.conftest import Command

    folder = tmp_path_factory.mktemp("scales")
    made = Command(folder).result(
        *(
            "--task",
            "quantize",
            "--model_name",
            model,
            "--calib_data",
            text_file,
            *CALIBRATION,
            "--scales",
            "found.pt",
        )
    )
    assert made["scales"] == "found.pt"
    return folder / "found.pt"


def test_scales_for_other_options(run, model, make_model, scales_file, tmp_path):
    load = ("--awq", "load", "--scales", scales_file)
    made = f"scales file {scales_file} was made for"
    assert quantize_error(run, model, *load, "--w_bit", "3") == f"{made} 4 bits, not for 3 bits"
    assert quantize_error(run, model, *load, "--group_size", "32") == f"{made} group size 64, not for group size 32"
    assert quantize_error(run, model, *load, "--symmetric") == f"{made} asymmetric grids, not for symmetric grids"
    other = make_model(tmp_path / "other", rms_norm_eps=1e-4)
    assert quantize_error(run, other, *load).startswith(f"{made} the model of fingerprint ")
    missing = "no scales file lost.pt; make one with --awq run, or go without: --awq none"
    assert quantize_error(run, model, "--awq", "load", "--scales", "lost.pt") == missing


def narrowed(file: zoo.ScaleFile) -> None:
    prev, layers, vector = file.scales[0]
    file.scales[0] = (prev, layers, vector[:-1])


def poisoned(value: float):
    def change(file: zoo.ScaleFile) -> None:
        file.scales[1][2][3] = value

    return change


def renamed(file: zoo.ScaleFile) -> None:
    _, layers, vector = file.scales[0]
    file.scales[0] = ("transformer.h.0.ln_1", layers, vector)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (narrowed, "has (63,) scales for model.layers.0.input_layernorm, the model needs (64,)"),
        (poisoned(float("nan")), "that is not a positive finite number"),
        (poisoned(0.0), "that is not a positive finite number"),
        (renamed, "names transformer.h.0.ln_1, which is in no decoder block of this model"),
    ],
)
def test_scales_without_a_record_are_checked_against_the_model(run, model, scales_file, tmp_path, change, words):
    """A file of the zoo says neither model nor bits; its names, shapes and values have to fit."""
    file = zoo.read(scales_file)
    file.meta = {}
    change(file)
    zoo.write(tmp_path / "zoo.pt", file)
    assert words in quantize_error(run, model, "--awq", "load", "--scales", tmp_path / "zoo.pt")


# The checkpoint.


def decode_error(run, checkpoint: Path) -> str:
    return run("--task", "decode", "--checkpoint", checkpoint, "--prompt", "the value").error


WEIGHTS = ("quantization_config", "config_groups", "group_0", "weights")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_bits", 5, "/config.json says 5 bits; this program runs (3, 4)"),
        ("num_bits", 4.0, "/config.json says 4.0 bits; this program runs (3, 4)"),
        ("num_bits", 3, "weight_packed is (64, 16) on disk, (64, 12) by the config (3 bits, group size 64)"),
        ("group_size", 2**40, "scales (64, 2) do not make groups of [1099511627776] over 128 inputs"),
        ("group_size", 32, "scales (64, 2) do not make groups of [32] over 128 inputs"),
    ],
)
def test_a_config_that_does_not_tell_the_truth(run, checkpoint, key, value, words):
    edit_json(checkpoint / "config.json", *WEIGHTS, key, value=value)
    error = decode_error(run, checkpoint)
    assert words in error and str(checkpoint) in error


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("intermediate_size", 256, "scales (64, 2) do not make groups of [64] over 256 inputs"),
        ("num_hidden_layers", 10**9, "names 1000000000 layers but the weights hold 63 tensors"),
        ("num_hidden_layers", 1, ", which the model of its config does not have"),
        ("vocab_size", 1024, "embed_tokens.weight is (512, 64) on disk, (1024, 64) by the config"),
        (
            "quantization_config",
            {"format": "pack-quantized", "config_groups": {"group_0": 5}},
            "has no config_groups",
        ),
    ],
)
def test_a_config_of_another_model(run, checkpoint, key, value, words):
    edit_json(checkpoint / "config.json", key, value=value)
    error = decode_error(run, checkpoint)
    assert words in error and str(checkpoint) in error


def test_a_checkpoint_of_floats(run, model):
    assert decode_error(run, model) == (
        f"{model}/config.json has no pack-quantized quantization_config: it is not a quantized checkpoint"
    )


def test_an_index_that_leaves_the_directory(run, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "x")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../x")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    path = checkpoint / "model.safetensors.index.json"
    assert decode_error(run, checkpoint) == f"{path} points to '../x'; only plain file names beside it are read"


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight_scale"])
def test_nan_in_a_checkpoint(run, checkpoint, name):
    edit_tensor(checkpoint / "model.safetensors", name, float("nan"))
    error = decode_error(run, checkpoint)
    assert error == f"{checkpoint}: {name} holds a value that is not finite; quantize the model again"


def test_a_checkpoint_that_is_cut_off(run, checkpoint):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:-1000])
    assert f"{checkpoint}/model.safetensors is not a whole safetensors file" in decode_error(run, checkpoint)


def test_a_checkpoint_without_a_tensor(run, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight_packed"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert decode_error(run, checkpoint) == (
        f"{checkpoint}: the checkpoint has no tensor model.layers.1.self_attn.k_proj.weight (1 missing)"
    )


def test_a_checkpoint_without_its_tokenizer(run, checkpoint):
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert decode_error(run, checkpoint).startswith(f"{checkpoint} holds no tokenizer (none of tokenizer.json, ")
