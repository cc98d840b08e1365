"""Checkpoints as GGUF: read back by the gguf package, by this program's float reader, and by transformers'."""

from contextlib import ExitStack
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from checkpoints.formats.gguf_write import WRITER, WRITER_KEY
from checkpoints.formats.names import place_of
from checkpoints.gguf_export import export_gguf
from checkpoints.pretrained import open_pretrained
from checkpoints.quantized import check_tensors, open_stored
from qlinear.errors import AwqError
from qlinear.progress import Note
from run_awq import export
from tests.checkpoints.pieces import byte_level, sentence_pieces
from tests.quantized import quantized, save_float
from tests.tiny import VOCAB, tiny_tokens

GEMMA = dict(tie_word_embeddings=True)
TALL = dict(num_hidden_layers=7, tie_word_embeddings=True)
LLAMA_3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=64)  # fmt: skip
LONG = dict(rope_type="longrope", rope_theta=5e3, original_max_position_embeddings=16, short_factor=[1.5] * 8,
            long_factor=[2.0] * 8)  # fmt: skip


def checkpoint(directory: Path, model_type: str = "llama", tokenizer=None, recipe=None, **overrides) -> Path:
    """A tiny model, quantized; its vocabulary is one that GGUF holds."""
    model = save_float(directory / "float", model_type, **overrides)
    made = quantized(model, directory / "made", **(recipe or {}))
    (tokenizer or byte_level()).save_pretrained(made)
    return made


def stored(path: Path) -> dict[str, numpy.ndarray]:
    """Every tensor as floats, by gguf's own reader."""
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    return {name: gguf.dequantize(each.data, each.tensor_type) for name, each in read.items()}


def halves_side_by_side(rows: numpy.ndarray, heads: int) -> numpy.ndarray:
    """Row `2 i + j` of each head of a file is row `i + j * half` of the module's."""
    half = rows.shape[0] // heads // 2
    order = [head * 2 * half + 2 * i + j for head in range(heads) for j in (0, 1) for i in range(half)]
    return rows[order]


def meant(made: Path) -> PreTrainedModel:
    """The model with the weights that the checkpoint stands for, `(q - zero) * scale` in float32."""
    layout, model, source = open_stored(made, False)
    found, values = check_tensors(model, source, layout), {}
    for name, linear in found.items():
        with ExitStack() as lent:
            weight = layout.read(name, linear, source, lent).weight.unpack()
        codes, zeros = weight.codes.float().unflatten(1, (weight.zeros.shape[1], -1)), weight.zeros.float()
        values[f"{name}.weight"] = ((codes - zeros[..., None]) * weight.scales.float()[..., None]).flatten(1)
    for name in source.shapes:
        if name.rpartition(".")[0] not in found or name.endswith(".bias"):
            with source.borrow(name) as tensor:
                values[name] = tensor.float().clone()
    whole = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    assert not whole.load_state_dict(of_experts(values), strict=False).unexpected_keys
    return whole


def of_experts(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the linears of experts in the tensors that transformers' modules hold: gates over ups, expert by expert."""
    made = {name: tensor for name, tensor in values.items() if ".experts." not in name}
    for owner in dict.fromkeys(name.partition(".experts.")[0] for name in values if ".experts." in name):
        count = len([name for name in values if name.startswith(f"{owner}.experts.") and ".down_proj." in name])

        def weight(index: int, part: str, owner=owner) -> torch.Tensor:
            return values[f"{owner}.experts.{index}.{part}_proj.weight"]

        gate_up = [torch.cat((weight(index, "gate"), weight(index, "up"))) for index in range(count)]
        made[f"{owner}.experts.gate_up_proj"] = torch.stack(gate_up)
        made[f"{owner}.experts.down_proj"] = torch.stack([weight(index, "down") for index in range(count)])
    return made


def dequantized(made: Path) -> dict[str, torch.Tensor]:
    return meant(made).state_dict()


@pytest.mark.parametrize(
    "recipe", [dict(w_bit=4), dict(w_bit=3), dict(w_bit=4, symmetric=True), dict(w_bit=4, group_size=64)]
)
def test_every_weight_of_a_llama_is_read_back(recipe, tmp_path):
    made = checkpoint(tmp_path, recipe=recipe, attention_bias=True)
    written = export_gguf(made, tmp_path / "m.gguf", floats="bf16")
    found, expected = stored(written.path), dequantized(made)
    four_asymmetric = recipe["w_bit"] == 4 and not recipe.get("symmetric")
    assert written.kinds == {"Q4_1" if four_asymmetric else "Q4_0": 14}
    assert ("three-bit" in "".join(written.notes)) == (recipe["w_bit"] == 3)
    assert written.file_bytes == written.path.stat().st_size
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "up_proj": "ffn_up",
             "gate_proj": "ffn_gate", "down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, tensor in expected.items():
        parts = name.split(".")
        if parts[1] != "layers":
            continue
        values = found[f"blk.{parts[2]}.{names[parts[-2]]}.{parts[-1]}"]
        if parts[-2] in ("q_proj", "k_proj"):
            values = halves_side_by_side(values, 4 if parts[-2] == "q_proj" else 2)
        tensor = tensor.numpy()
        if tensor.ndim == 1 or not four_asymmetric:
            assert numpy.array_equal(values, tensor), name
        else:  # the minimum has eleven bits in half precision, `zero * scale` up to twelve
            assert (abs(values - tensor) <= 15 * abs(tensor).max() / 8 * 2**-11).all(), name
            assert (values == tensor).mean() > 0.5, name
    for name, there in (("model.embed_tokens", "token_embd"), ("lm_head", "output"), ("model.norm", "output_norm")):
        assert numpy.array_equal(found[f"{there}.weight"], expected[f"{name}.weight"].numpy())
    assert len(found) == len(expected)


FAMILIES = [
    ("llama", dict(head_dim=32)), ("llama", dict(rope_parameters=LLAMA_3)), ("mistral", dict(sliding_window=None)),
    ("qwen2", dict(tie_word_embeddings=True)), ("gemma2", GEMMA), ("gemma3_text", TALL),
    ("phi3", dict(sliding_window=None)),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "overrides"), FAMILIES)
def test_transformers_own_reader_computes_the_same(model_type, overrides, tmp_path):
    """Which undoes by itself what its authors know of llama.cpp's arrangement: order of rows, norms, joined parts."""
    made = checkpoint(tmp_path, model_type, recipe=dict(w_bit=3), **overrides)
    written = export_gguf(made, tmp_path / "m.gguf", floats="bf16")
    expected = meant(made)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    left = {name for name in stored(written.path) if name == "rope_freqs.weight"}
    assert bool(left) == (overrides.get("rope_parameters") is LLAMA_3)
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(theirs.state_dict()[name], tensor, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize(("model_type", "overrides"), [
    ("llama", {}), ("qwen2", dict(tie_word_embeddings=True)), ("qwen3", {}), ("gemma3_text", TALL),
    ("llama", dict(rope_parameters=LLAMA_3)), ("mistral", dict(sliding_window=None)), ("gemma", GEMMA),
    ("gemma2", GEMMA), ("phi3", dict(sliding_window=None)), ("phi3", dict(sliding_window=None, rope_parameters=LONG)),
    ("smollm3", dict(num_hidden_layers=4, no_rope_layer_interval=4)),
])  # fmt: skip
def test_the_float_reader_opens_what_was_written(model_type, overrides, tmp_path):
    made = checkpoint(tmp_path, model_type, recipe=dict(w_bit=4, symmetric=True), **overrides)
    opened = open_pretrained(str(export_gguf(made, tmp_path / "m.gguf", floats="bf16").path))
    expected = meant(made)
    ids = tiny_tokens()
    assert opened.tokenizer("the thing").input_ids == byte_level()("the thing").input_ids
    assert opened.generation_config.eos_token_id == 2
    with torch.no_grad():
        assert torch.allclose(opened.load(torch.float32)(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)


def test_scaled_frequencies(tmp_path):
    """By the reference of Llama 3.1, written out: wavelengths beyond the first context are slowed 8 times."""
    written = export_gguf(checkpoint(tmp_path, rope_parameters=LLAMA_3), tmp_path / "m.gguf")
    factors = []
    for i in range(8):
        wave = 2 * numpy.pi * 1e4 ** (2 * i / 16)
        blend = (64 / wave - 1) / 3
        factors.append(1 if wave < 16 else 8 if wave > 64 else 1 / ((1 - blend) / 8 + blend))
    assert numpy.allclose(stored(written.path)["rope_freqs.weight"], factors, rtol=1e-6)
    assert 1 < factors[1] < 8  # all three kinds are there


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_the_header(tmp_path):
    made = checkpoint(tmp_path, "gemma3_text", sentence_pieces(prepend=False), **TALL)
    found = fields(export_gguf(made, tmp_path / "m.gguf").path)
    expected = {
        "general.architecture": "gemma3", "general.name": "made", WRITER_KEY: WRITER, "general.file_type": 3,
        "gemma3.block_count": 7, "gemma3.context_length": 256, "gemma3.embedding_length": 64,
        "gemma3.feed_forward_length": 128, "gemma3.attention.head_count": 4, "gemma3.attention.head_count_kv": 2,
        "gemma3.attention.key_length": 16, "gemma3.attention.value_length": 16, "gemma3.rope.dimension_count": 16,
        "gemma3.rope.freq_base": 1e6, "gemma3.rope.freq_base_swa": 1e4, "gemma3.attention.sliding_window": 8,
        "gemma3.vocab_size": VOCAB, "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.unknown_token_id": 3,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.scores"]) == VOCAB


ROPES = [
    (dict(rope_type="linear", factor=4.0), {"scaling.type": "linear", "scaling.factor": 4.0}, {}),
    (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
     {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64,
      "scaling.yarn_beta_fast": 32.0, "scaling.yarn_beta_slow": 1.0}, {}),
    (dict(rope_type="longrope", original_max_position_embeddings=16, short_factor=[1.0] * 8, long_factor=[2.0] * 8),
     {"scaling.type": "longrope", "scaling.original_context_length": 16, "scaling.attn_factor": 2**0.5},
     {"rope_factors_short.weight": [1.0] * 8, "rope_factors_long.weight": [2.0] * 8}),
]  # fmt: skip


@pytest.mark.parametrize(("rope", "header", "tables"), ROPES)
def test_scaled_positions(rope, header, tables, tmp_path):
    """Of the long rope the temperature is `sqrt(1 + ln(256 / 16) / ln(16))`."""
    path = export_gguf(checkpoint(tmp_path, rope_parameters=dict(rope, rope_theta=5e3)), tmp_path / "m.gguf").path
    found = fields(path)
    assert {name: found.get(f"llama.rope.{name}") for name in header} == pytest.approx(header)
    assert found["llama.rope.freq_base"] == 5e3
    assert {name: stored(path)[name].tolist() for name in tables} == tables


def test_a_window_that_llama_cpp_does_not_know_bounds_the_context(tmp_path):
    written = export_gguf(checkpoint(tmp_path, "mistral"), tmp_path / "m.gguf")
    assert fields(written.path)["llama.context_length"] == 8
    assert written.notes == ["llama.cpp's llama has no windows: the file is for 8 tokens, not 256"]


@pytest.mark.parametrize("floats", ["q8_0", "f16"])
def test_an_embedding_in_fewer_bits(floats, tmp_path):
    made = checkpoint(tmp_path, recipe=dict(lm_head=True))
    written = export_gguf(made, tmp_path / "m.gguf", floats=floats)
    assert written.kinds == {"Q4_1": 15}
    exact = dequantized(made)["model.embed_tokens.weight"].numpy()
    found = stored(written.path)["token_embd.weight"]
    step = abs(exact).reshape(VOCAB, -1, 32).max(-1).repeat(32, 1) / 127
    bound = step * 0.51 + abs(exact) * 2**-11 if floats == "q8_0" else abs(exact) * 2**-11
    assert (abs(found - exact) <= bound + 2**-24).all() and (floats == "f16" or (found != exact).any())


def test_the_api_says_what_was_lost(tmp_path):
    """Q8_0 loses up to half a step of a block's largest; scales of this program lose nothing in half precision."""
    made, said = checkpoint(tmp_path, recipe=dict(w_bit=3, group_size=64)), []
    result = export(made, tmp_path / "m.gguf", "gguf", progress=said.append)
    assert (result.format, result.w_bit, result.group_size, result.symmetric) == ("gguf", 3, 64, False)
    assert result.bytes == (tmp_path / "m.gguf").stat().st_size and result.checkpoint == str(tmp_path / "m.gguf")
    assert result.scales.largest == 0 and 0.001 < result.floats.rms < 0.01
    assert any(isinstance(each, Note) and "stored as Q4_0" in each.text for each in said)
    half = export(made, tmp_path / "h.gguf", "gguf-f16")
    assert half.floats.rms < 2**-11 and half.bytes > result.bytes
    for format in ("gguf", "awq"):
        with pytest.raises(AwqError, match="is GGUF already"):
            export(tmp_path / "m.gguf", tmp_path / "x.gguf", format)


def test_where_an_export_goes():
    assert [place_of("m-w4", format) for format in ("awq", "gguf", "gguf-f16")] == [
        "m-w4-awq",
        "m-w4.gguf",
        "m-w4-f16.gguf",
    ]
