"""Float models on disk for the tests that open one, and what they ask of it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.pretrained import open_pretrained
from qlinear.errors import ModelError

TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def tiny_model(family="llama", dtype=torch.bfloat16, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **TINY | changes)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def save(model, directory: Path, shard="5GB") -> Path:
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def assert_same_tensors(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(name, message: str) -> None:
    with pytest.raises(ModelError) as raised:
        open_pretrained(str(name)).load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700
