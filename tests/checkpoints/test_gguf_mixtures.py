"""Mixtures of experts as GGUF, read back by the gguf package."""

from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy
import pytest

from architectures.registry import find_family
from checkpoints.formats.gguf_plan import Plan
from checkpoints.gguf_export import export_gguf
from checkpoints.quantized import check_tensors, open_stored
from qlinear.errors import CheckpointError
from tests.checkpoints.test_gguf_export import checkpoint, dequantized, fields, halves_side_by_side, stored
from tests.checkpoints.test_gguf_refused import refused

MIXTURES = [
    ("mixtral", {}, {"llama.expert_count": 6, "llama.expert_used_count": 2, "llama.feed_forward_length": 64}),
    ("qwen3_moe", {}, {"qwen3moe.expert_count": 8, "qwen3moe.expert_used_count": 3,
                       "qwen3moe.expert_feed_forward_length": 32}),
    ("qwen2_moe", {}, {"qwen2moe.expert_count": 8, "qwen2moe.expert_used_count": 3,
                       "qwen2moe.expert_feed_forward_length": 32, "qwen2moe.expert_shared_feed_forward_length": 96}),
    ("olmoe", dict(num_key_value_heads=4), {"olmoe.expert_count": 8, "olmoe.feed_forward_length": 64}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "overrides", "header"), MIXTURES)
def test_experts_of_a_layer_are_one_tensor(model_type, overrides, header, tmp_path):
    """In their order; what chooses them is float32."""
    made = checkpoint(tmp_path, model_type, recipe=dict(w_bit=4, symmetric=True), **overrides)
    written = export_gguf(made, tmp_path / "m.gguf", floats="bf16")
    found, expected = stored(written.path), dequantized(made)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(written.path).tensors}
    gate_up, down = (expected[f"model.layers.1.mlp.experts.{part}_proj"].numpy() for part in ("gate_up", "down"))
    gate, up = numpy.split(gate_up, 2, axis=1)
    for name, values in {"gate": gate, "up": up, "down": down}.items():
        assert kinds[f"blk.1.ffn_{name}_exps.weight"] == "Q4_0"
        assert numpy.array_equal(found[f"blk.1.ffn_{name}_exps.weight"], values)
    assert kinds["blk.1.ffn_gate_inp.weight"] == "F32"
    assert numpy.array_equal(found["blk.1.ffn_gate_inp.weight"], expected["model.layers.1.mlp.gate.weight"].numpy())
    rows = found["blk.1.attn_q.weight"]
    rows = halves_side_by_side(rows, 4) if model_type == "mixtral" else rows
    assert numpy.array_equal(rows, expected["model.layers.1.self_attn.q_proj.weight"].numpy())
    assert written.kinds == {"Q4_0": sum(name.endswith("_proj.weight") for name in quantized_names(made))}
    said = fields(written.path)
    assert {name: said.get(name) for name in header} == header


def quantized_names(made: Path) -> list[str]:
    layout, model, source = open_stored(made, False)
    return [f"{name}.weight" for name in check_tensors(model, source, layout)]


@pytest.mark.parametrize(("model_type", "overrides", "message"), [
    ("olmoe", {}, "has 2 heads of k and v for 4 of q, which llama.cpp's olmoe does not compute"),
    ("olmoe", dict(num_key_value_heads=4, norm_topk_prob=True), "has norm_topk_prob True, which llama.cpp's olmoe"),
    ("olmoe", dict(num_key_value_heads=4, clip_qkv=2.0), "has limits of q, k and v, which llama.cpp's olmoe"),
    ("qwen3_moe", dict(norm_topk_prob=False), "has norm_topk_prob False, which llama.cpp's qwen3moe"),
    ("qwen3_moe", dict(mlp_only_layers=[0]), "layers.0.mlp.gate_proj.weight, for which llama.cpp's qwen3moe has no"),
    ("glm4_moe", {}, "glm4_moe models are not written as GGUF; known are"),
])  # fmt: skip
def test_mixtures_that_llama_cpp_would_run_as_another_model(model_type, overrides, message, tmp_path):
    refused(checkpoint(tmp_path, model_type, **overrides), tmp_path / "m.gguf", message)


def test_experts_in_two_kinds_of_blocks_are_refused(tmp_path):
    _, model, _ = open_stored(checkpoint(tmp_path, "qwen3_moe"), False)
    experts = [f"model.layers.0.mlp.experts.{index}.up_proj" for index in range(8) if index != 5]
    weights = SimpleNamespace(model=model, bits=dict.fromkeys(experts, 4), symmetric=dict.fromkeys(experts, True))
    with pytest.raises(CheckpointError, match=r"experts.0.up_proj.weight and other experts' are Q4_0 and Q8_0; GGUF"):
        Plan(weights, find_family(model.config).gguf, "q8_0")
