"""What quantize writes is what transformers and this program read: the same model, in the size it should have."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models.tiny import Row, save_tiny
from checkpoints import writer
from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import CheckpointError
from qlinear.replace import quantized_layers
from run_awq import Recipe, export, load, quantize
from tests.quantized import quantized, save_float
from tests.tiny import VOCAB, tiny_tokens

BACKEND = ReferenceBackend("cpu/torch")

MODELS = (
    ("llama", {}),  # grouped-query attention
    ("llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    ("qwen2", {}),  # q, k and v with bias
    ("qwen2", dict(tie_word_embeddings=True)),
    ("phi3", {}),
    ("opt", {}),  # tied
    ("opt", dict(tie_word_embeddings=False, do_layer_norm_before=False)),
    ("gpt_neox", {}),  # its head has had two names
    ("falcon", {}),  # tied
    ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2, bias=True, tie_word_embeddings=False)),
    ("bloom", {}),  # tied
    ("gemma2", {}),  # tied
    ("gemma3", {}),  # a text model within another
)

# On the way to a logit, through two blocks and a head, some 30 results and weights are rounded to bfloat16, each by
# up to 2**-9 and independently of the others; where two are multiplied (gate and up, softmax and v) both errors count.
DEVIATION = 2**-9 * 30**0.5 * 1.5


def open_both(directory: Path):
    """Our model and that of plain transformers, which must find every tensor in its place."""
    theirs, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"], info
    assert theirs.dtype == torch.bfloat16
    return open_quantized(directory, BACKEND, flash_attention=False), theirs.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(tiny_tokens()).logits.double()


def decoded_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights a checkpoint stands for, in float64: (q - zero) * scale, unpacked by the format's own library."""
    tensors = load_file(directory / "model.safetensors")
    weights = {}
    for name in (key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")):
        part = {leaf: tensors.get(f"{name}.weight_{leaf}") for leaf in ("packed", "zero_point", "scale", "shape")}
        shape, groups = part["shape"].tolist(), part["scale"].shape[1]
        bits = 32 * part["packed"].shape[1] // shape[1]
        codes = unpack_from_int32(part["packed"], bits, shape).double()
        zeros = torch.zeros(shape[0], groups, dtype=torch.float64)  # the library's values are signed
        if part["zero_point"] is not None:
            zeros += unpack_from_int32(part["zero_point"], bits, (shape[0], groups), packed_dim=0)
        grouped = (codes.view(shape[0], groups, -1) - zeros.unsqueeze(-1)) * part["scale"].double().unsqueeze(-1)
        weights[f"{name}.weight"] = grouped.view(shape)
    return weights


def assert_same_within_bf16_rounding(ours, theirs, exact) -> None:
    """exact: the logits of the same weights in float32. Of a few thousand logits, none is six deviations off."""
    size = exact.square().mean().sqrt()
    for found in (ours, theirs):
        assert (found - exact).square().mean().sqrt() < DEVIATION * size
    assert (ours - theirs).abs().max() < 6 * 2**0.5 * DEVIATION * size


@pytest.mark.parametrize(("w_bit", "lm_head"), [(3, True), (4, False)])
@pytest.mark.parametrize(("model_type", "overrides"), MODELS)
def test_logits_are_those_of_transformers(tmp_path, model_type, overrides, w_bit, lm_head):
    source = save_float(tmp_path / "float", model_type, **overrides)
    directory = quantized(source, tmp_path / "q", w_bit=w_bit, lm_head=lm_head, lm_head_group_size=64)
    loaded, theirs = open_both(directory)
    ours, found = logits(loaded.module), logits(theirs)
    exact = theirs.float()
    weights = decoded_weights(directory)
    with torch.no_grad():
        for name, weight in weights.items():
            exact.get_parameter(name).copy_(weight)
    assert_same_within_bf16_rounding(ours, found, logits(exact))

    layers = quantized_layers(loaded.module)
    assert {f"{name}.weight" for name in layers} == weights.keys()
    head = next(name for name, module in theirs.named_modules() if module is theirs.get_output_embeddings())
    assert (head in layers) == lm_head
    assert all(layer.group_size == (64 if name == head else 32) for name, layer in layers.items())
    assert {layer.w_bit for layer in layers.values()} == {w_bit}
    # The float model is further away than rounding: the test above would notice a layer left unquantized.
    float_model = AutoModelForCausalLM.from_pretrained(source)
    assert (logits(float_model) - ours).square().mean().sqrt() > 0.05 * ours.square().mean().sqrt()


@pytest.mark.parametrize(
    ("model_type", "w_bit", "overrides", "expert"),
    [
        ("llama", 3, dict(attention_bias=True), None),
        ("qwen3_moe", 4, dict(num_experts_per_tok=8), "mlp.experts.{}.{}_proj"),
        ("mixtral", 3, dict(num_experts_per_tok=6), "block_sparse_moe.experts.{}.w{}"),
    ],
)
def test_a_symmetric_checkpoint_is_that_of_transformers_with_experts_too(
    tmp_path, model_type, w_bit, overrides, expert
):
    """Every token goes to all experts: which come first may hang on the last bit of a router's bfloat16."""
    source = save_float(tmp_path / "float", model_type, **overrides)
    directory = quantized(source, tmp_path / "q", w_bit=w_bit, symmetric=True, lm_head=True)
    weights, stored = decoded_weights(directory), load_file(directory / "model.safetensors")
    assert not [name for name in stored if name.endswith("zero_point")]
    loaded, theirs = open_both(directory)
    assert {layer.w_bit for layer in quantized_layers(loaded.module).values()} == {w_bit}
    assert_same_within_bf16_rounding(logits(loaded.module), logits(theirs), logits(deepcopy(theirs).float()))
    if expert is None:
        for name, weight in weights.items():
            assert torch.equal(theirs.get_parameter(name), weight.bfloat16()), name
        return
    gate, up, down = ("gate", "up", "down") if model_type == "qwen3_moe" else (1, 3, 2)
    for index, layer in enumerate(theirs.model.layers):
        for number, (gate_up, last) in enumerate(
            zip(layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj, strict=True)
        ):
            name = f"model.layers.{index}.{expert}.weight"
            joined = torch.cat([weights[name.format(number, part)] for part in (gate, up)])
            assert torch.equal(gate_up, joined.bfloat16())
            assert torch.equal(last, weights[name.format(number, down)].bfloat16())


@pytest.mark.parametrize(("model_type", "w_bit"), [("llama", 3), ("bloom", 4), ("gemma2", 4), ("phi3", 3)])
def test_an_awq_checkpoint_too(tmp_path, model_type, w_bit):
    source = save_float(tmp_path / "float", model_type)
    directory = quantized(source, tmp_path / "q", awq="run", w_bit=w_bit, scales=str(tmp_path / "s.pt"))
    loaded, theirs = open_both(directory)
    assert loaded.recipe["awq"] == "run" and (tmp_path / "s.pt").is_file()
    ours, found = logits(loaded.module), logits(theirs)
    exact = theirs.float()
    with torch.no_grad():
        for name, weight in decoded_weights(directory).items():
            exact.get_parameter(name).copy_(weight)
    assert_same_within_bf16_rounding(ours, found, logits(exact))
    # A run with its scales file gives the same bytes.
    again = quantized(source, tmp_path / "again", awq="load", w_bit=w_bit, scales=str(tmp_path / "s.pt"))
    first, second = load_file(directory / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("w_bit", "limit"), [(3, 3.3), (4, 4.3)])
def test_bits_per_weight_on_disk(tmp_path, w_bit, limit):
    model = save_float(tmp_path / "float", hidden_size=128, intermediate_size=256, num_key_value_heads=4)
    directory = quantized(model, tmp_path / "q", w_bit=w_bit, group_size=128)
    tensors = load_file(directory / "model.safetensors")
    for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
        parts = [tensor for key, tensor in tensors.items() if key.startswith(f"model.layers.0.{name}.")]
        weights = tensors[f"model.layers.0.{name}.weight_shape"].prod().item()
        assert w_bit < 8 * sum(part.nbytes for part in parts) / weights <= limit
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert (directory / "model.safetensors").stat().st_size < stored + 20_000  # the header


def test_a_checkpoint_stands_alone(tmp_path):
    directory = quantized(save_float(tmp_path / "float"), tmp_path / "q", lm_head=True)
    assert {path.name for path in directory.iterdir()} == {
        "README.md", "awq_recipe.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert AutoTokenizer.from_pretrained(directory)("w7 w3 </s>")["input_ids"] == [7, 3, 2]
    recipe = json.loads((directory / "awq_recipe.json").read_text())
    assert recipe["w_bit"] == 4 and recipe["versions"]["torch"] and recipe["options"]["seed"] == 0
    assert recipe == open_quantized(directory, BACKEND).recipe


def test_untying_a_quantized_head_keeps_the_embedding(tmp_path):
    source = save_float(tmp_path / "float", "llama", tie_word_embeddings=True)
    directory = quantized(source, tmp_path / "q", lm_head=True)
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is False
    tensors, before = load_file(directory / "model.safetensors"), load_file(source / "model.safetensors")
    assert torch.equal(tensors["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert "lm_head.weight" not in tensors and tensors["lm_head.weight_shape"].tolist() == [VOCAB, 64]


def test_a_tied_head_is_stored_once(tmp_path):
    directory = quantized(save_float(tmp_path / "float", "llama", tie_word_embeddings=True), tmp_path / "q")
    assert not [name for name in load_file(directory / "model.safetensors") if name.startswith("lm_head")]
    model = open_quantized(directory, BACKEND).module
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("shard_bytes", [1, 10_000, 30_000])
def test_a_checkpoint_in_shards(tmp_path, monkeypatch, shard_bytes):
    source = save_float(tmp_path / "float")
    whole = quantized(source, tmp_path / "whole")
    monkeypatch.setattr(writer, "SHARD_BYTES", shard_bytes)
    sharded = quantized(source, tmp_path / "sharded")
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    count = len(files)
    assert count > 1 and files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert set(index["weight_map"].values()) == set(files)
    stored = [tensor for file in files for tensor in load_file(sharded / file).values()]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored)
    loaded, theirs = open_both(sharded)
    assert torch.equal(logits(loaded.module), logits(open_quantized(whole, BACKEND).module))
    assert torch.equal(logits(theirs), logits(AutoModelForCausalLM.from_pretrained(whole)))


def test_a_generation_config_that_transformers_would_not_save(tmp_path):
    """Many models on the hub have a temperature without do_sample; vicuna is one."""
    source = save_float(tmp_path / "float")
    (source / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 5]}')
    found = open_quantized(quantized(source, tmp_path / "q"), BACKEND).module.generation_config
    assert (found.temperature, found.top_p, found.eos_token_id) == (0.9, 0.6, [2, 5])


@pytest.mark.parametrize("model_type", ["camembert", "xlm-roberta", "roberta"])
def test_a_head_that_is_tied_under_either_name(tmp_path, model_type):
    """In some of these classes the head comes before the embedding, in others behind it."""
    source = tmp_path / "float"
    text = save_tiny(Row(model_type), source)
    quantize(str(source), str(tmp_path / "q"), Recipe(group_size=32, awq="none", calib_data=str(text)))
    stored, model = load_file(tmp_path / "q" / "model.safetensors"), open_quantized(tmp_path / "q", BACKEND).module
    embedding = model.get_input_embeddings().weight
    names = {"lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"} & stored.keys()
    assert len(names) == 1 and torch.equal(embedding, stored[names.pop()])
    assert model.lm_head.decoder.weight is embedding and model.lm_head.decoder.bias is model.lm_head.bias


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_is_stored_besides(tmp_path, same):
    """Of the two that differ, a model whose configuration ties them could have but one."""
    directory = quantized(save_float(tmp_path / "float", tie_word_embeddings=True), tmp_path / "q")
    stored = load_file(directory / "model.safetensors")
    head = stored["model.embed_tokens.weight"] * (1 if same else -1)
    save_file(stored | {"lm_head.weight": head}, directory / "model.safetensors")
    if same:
        assert load(directory).generate(["w5 w7"], max_new_tokens=2)
        return
    told = "model.embed_tokens.weight and lm_head.weight differ but the configuration ties them$"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=told):
            load(directory)


@pytest.mark.parametrize("format, file", [("gptq", "quantize_config.json"), ("awq", "quant_config.json")])
def test_what_is_quantized_how_may_stand_in_a_file_of_its_own(tmp_path, format, file):
    made, directory = quantized(save_float(tmp_path / "float"), tmp_path / "q"), tmp_path / "exported"
    export(made, directory, format)
    expected = load(directory).logits(tiny_tokens()[0])
    config = json.loads((directory / "config.json").read_text())
    (directory / file).write_text(json.dumps(config.pop("quantization_config")))
    (directory / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        assert torch.equal(load(directory).logits(tiny_tokens()[0]), expected)


def test_float32_that_transformers_keeps_is_stored_and_run_so(tmp_path):
    source, name = tmp_path / "float", "model.layers.1.mlp.gate.e_score_correction_bias"
    text = save_tiny(Row("deepseek_v3"), source)
    weights = load_file(source / "model.safetensors")
    bias = torch.tensor([5.0, 5.001, 5.002, 5.003])
    save_file(weights | {name: bias}, source / "model.safetensors", metadata={"format": "pt"})
    quantize(str(source), str(tmp_path / "q"), Recipe(group_size=32, awq="none", calib_data=str(text)))
    stored, model = load_file(tmp_path / "q" / "model.safetensors"), open_quantized(tmp_path / "q", BACKEND).module
    assert torch.equal(stored[name], bias) and torch.equal(model.get_buffer(name), bias)
    assert stored["model.norm.weight"].dtype == model.model.norm.weight.dtype == torch.bfloat16
