"""What programs of yesterday find in a checkpoint."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from checkpoints import older
from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from run_awq import export
from tests.quantized import quantized, save_float
from tests.tiny import tiny_tokens


def test_a_checkpoint_says_its_rotary_base_and_its_tokenizers_class_twice(tmp_path):
    made = quantized(save_float(tmp_path / "float", rope_parameters={"rope_type": "default", "rope_theta": 5e4}),
                     tmp_path / "w4")  # fmt: skip
    config = json.loads((made / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e4 and "rope_scaling" not in config
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(made)("w5 w9")["input_ids"] == [5, 9]
    opened = open_quantized(made, ReferenceBackend("cpu/torch")).module
    assert opened.config.rope_parameters["rope_theta"] == 5e4 and opened.dtype == torch.bfloat16
    assert AutoConfig.from_pretrained(made).rope_parameters == opened.config.rope_parameters


@pytest.mark.parametrize(
    ("rope", "added"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6}),
        (
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        ),
        (
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e6}}, {}),
        (None, {}),
    ],
)
def test_rotary_parameters_where_they_are_flat(tmp_path, rope, added):
    described = {"model_type": "x"} | ({"rope_parameters": rope} if rope else {})
    (tmp_path / "config.json").write_text(json.dumps(described))
    older.rewrite(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == described | added


def test_what_is_there_stays(tmp_path):
    described = {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    older.rewrite(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == described
    # without tokenizer.json, the class that has no other files is not the one meant
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"


def test_experts_are_counted_as_older_readers_call_it(tmp_path):
    """And routers go by the name that stands beside the experts in what the model was made from."""
    made = quantized(save_float(tmp_path / "qwen", "qwen3_moe"), tmp_path / "w4")
    config = json.loads((made / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 8
    mixtral = quantized(save_float(tmp_path / "mixtral", "mixtral"), tmp_path / "mixtral-w4")
    export(mixtral, tmp_path / "awq", "awq")
    for directory in (mixtral, tmp_path / "awq"):
        with safe_open(directory / "model.safetensors", "pt") as stored:
            routers = [name for name in stored.keys() if name.endswith("gate.weight")]
        assert routers == [f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)]
    with torch.no_grad():
        logits = [open_quantized(one, ReferenceBackend("cpu/torch")).module(tiny_tokens()).logits
                  for one in (mixtral, tmp_path / "awq")]  # fmt: skip
    assert torch.equal(*logits)
    kept = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert kept == [*(f"model.layers.{layer}.block_sparse_moe.gate" for layer in (0, 1)), "lm_head"]
