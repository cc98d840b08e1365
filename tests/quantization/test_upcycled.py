"""Experts quantized: a dense model's MLP in every expert, so that the float answer is known, and what few reach."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from run_awq import quantize
from tests.quantized import calibration_text, recipe, word_tokenizer
from tests.tiny import CONTEXT, FFN, HEADS, HIDDEN, VOCAB, tiny_model, tiny_tokens

LAYERS, EXPERTS, CHOSEN, SAMPLES, LENGTH = 1, 4, 2, 8, 64


def outlier_dense():
    """A Qwen3 whose norms make some channels much larger than others, as in trained models."""
    model = tiny_model("qwen3", num_hidden_layers=LAYERS)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            generator = torch.Generator().manual_seed(len(name.partition("layers.")[2]))
            parameter.data *= torch.randn(parameter.shape, generator=generator).exp()
    return model


def upcycled(dense, experts: int = EXPERTS):
    """A Qwen3-MoE with its MLP in each expert: a token's chosen ones weigh 1 together, whichever they are."""
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, moe_intermediate_size=FFN,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=CONTEXT, num_experts=experts, num_experts_per_tok=CHOSEN, norm_topk_prob=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    held, own = dense.state_dict(), model.state_dict()
    generator = torch.Generator().manual_seed(4)
    for name, tensor in own.items():
        if name in held:
            tensor.copy_(held[name])
        elif name.endswith("mlp.gate.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / HIDDEN**0.5)
        else:
            layer = name.partition(".experts.")[0]
            parts = ("gate", "up") if name.endswith("gate_up_proj") else ("down",)
            tensor.copy_(torch.cat([held[f"{layer}.{part}_proj.weight"] for part in parts]).expand_as(tensor))
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(tiny_tokens(4, 40), use_cache=False).logits.double()


def saved(model, directory: Path) -> Path:
    model.save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    words = torch.randint(3, VOCAB, (SAMPLES * LENGTH,), generator=torch.Generator().manual_seed(3))
    calibration_text(directory).write_text(" ".join(f"w{word}" for word in words.tolist()))
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """The dense model and the one with experts, in float32 on disk, quantized with AWQ and without."""
    folder, dense = tmp_path_factory.mktemp("models"), outlier_dense()
    found: dict = {"dense": dense, "experts": upcycled(dense)}
    for name in ("dense", "experts"):
        source = saved(found[name], folder / name)
        searched = dict(awq="run", solver="gptq", scales=str(folder / f"{name}.pt"))
        for awq, changes in (("run", searched), ("none", {})):
            output = folder / f"{name}-{awq}"
            wanted = recipe(source, w_bit=3, n_samples=SAMPLES, seqlen=LENGTH, **changes)
            found[name, awq] = (output, quantize(str(source), str(output), wanted))
    return found


def error(made: dict, name: str, awq: str) -> float:
    """Of the quantized model's logits, as a share of the float model's."""
    exact = logits(made[name])
    ours = logits(open_quantized(made[name, awq][0], ReferenceBackend("cpu/torch")).module)
    return float((ours - exact).norm() / exact.norm())


def test_the_float_models_are_one(made):
    dense, experts = logits(made["dense"]), logits(made["experts"])
    assert (dense - experts).norm() <= 1e-5 * dense.norm()


def test_experts_lose_about_as_much_as_the_dense_model(made):
    """Fewer tokens per expert to solve on; and routers, and the rest, are as they were."""
    dense, experts = error(made, "dense", "run"), error(made, "experts", "run")
    plain = error(made, "experts", "none")
    assert 0.5 * dense < experts < 1.35 * dense
    assert experts < 0.9 * plain, "and less than by rounding alone"


@pytest.mark.parametrize("awq", ["run", "none"])
def test_every_expert_is_quantized_and_named_as_loaders_expect(made, awq):
    output, result = made["experts", awq]
    names = {layer.name for layer in result.layers}
    assert {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj"
        for layer in range(LAYERS) for expert in range(EXPERTS) for part in ("gate", "up", "down")
    } < names  # fmt: skip
    assert len(names) == LAYERS * (4 + 3 * EXPERTS)
    tensors = load_file(output / "model.safetensors")
    assert "model.layers.0.mlp.experts.3.down_proj.weight_packed" in tensors
    assert tensors["model.layers.0.mlp.gate.weight"].dtype == torch.bfloat16
    assert not any(tensor.ndim > 2 for tensor in tensors.values())


def test_hits_of_all_experts_add_up_to_the_tokens_that_were_sent(made):
    _, result = made["experts", "run"]
    for layer in range(LAYERS):
        for part in ("gate", "up", "down"):
            hits = [
                found.fed for found in result.layers
                if found.name.startswith(f"model.layers.{layer}.mlp.experts.") and found.name.endswith(f"{part}_proj")
            ]  # fmt: skip
            assert len(hits) == EXPERTS and all(fed.stand_in is None for fed in hits)
            assert sum(fed.tokens for fed in hits) == SAMPLES * LENGTH * CHOSEN
    q = next(found.fed for found in result.layers if found.name == "model.layers.0.self_attn.q_proj")
    assert (q.tokens, q.stand_in) == (SAMPLES * LENGTH, None)
    _, plain = made["experts", "none"]
    assert all(found.fed is None for found in plain.layers), "no text was read"


def test_starved_experts_are_told_of_in_the_record(tmp_path):
    """8 tokens for 24 experts, two a token: a third of them at least see none."""
    source = saved(upcycled(outlier_dense(), experts=24), tmp_path / "m")
    quantize(str(source), str(tmp_path / "q"), recipe(source, solver="gptq", n_samples=1, seqlen=8))
    stored = json.loads((tmp_path / "q" / "awq_recipe.json").read_text())
    fed = {layer["name"].partition("experts.")[2]: layer["fed"] for layer in stored["layers"]}
    starved = [e for e in range(24) if fed[f"{e}.down_proj"]["stand_in"] == "none"]
    assert len(starved) >= 8
    for e in range(24):
        gate, up, down = (fed[f"{e}.{part}_proj"] for part in ("gate", "up", "down"))
        assert gate == up
        assert gate == ({"tokens": 16, "stand_in": "all experts' inputs"} if e in starved else down)
        assert e in starved or (down["stand_in"] is None and down["tokens"] >= 1)
    assert sum(fed[f"{e}.down_proj"]["tokens"] for e in range(24)) == 16
