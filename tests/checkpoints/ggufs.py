"""Tiny models as llama.cpp's converter writes them, by the gguf package's own writer."""

import time
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.pretrained import open_pretrained
from qlinear.errors import ModelError

TINY = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=2.0**-17,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0})  # fmt: skip
NAMES = {"embed_tokens": "token_embd", "lm_head": "output", "input_layernorm": "attn_norm", "q_proj": "attn_q",
         "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm",
         "k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down", "norm": "output_norm", "qkv_proj": "attn_qkv",
         "gate_up_proj": "ffn_up", "pre_feedforward_layernorm": "ffn_norm",
         "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip
# What llama.cpp's converter calls a family; those whose rows of q and k it interleaves; those to whose norms it adds 1.
CALLED = {"gemma3_text": "gemma3"}
INTERLEAVED, ONE_ADDED = ("llama", "smollm3"), ("gemma", "gemma2", "gemma3_text")


def tiny_model(architecture, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **TINY | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model


def write_gguf(path: Path, model, extra=None, kind=None, header=None, named=None) -> Path:
    """The model as llama.cpp's converter lays it out. header: more of it, behind the architecture's name; named: the
    texts of tokens, by their numbers.
    """
    config, family = model.config, model.config.model_type
    architecture = CALLED.get(family, family)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {"context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
                       "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
                       "attention.head_count": config.num_attention_heads, "vocab_size": config.vocab_size,
                       "attention.head_count_kv": config.num_key_value_heads, "rope.dimension_count": 8,
                       "attention.key_length": 8}.items():  # fmt: skip
        if type((header or {}).get(key, value)) is int:
            writer.add_uint32(f"{architecture}.{key}", (header or {}).get(key, value))
    own = {"attention.layer_norm_rms_epsilon": float(config.rms_norm_eps), "rope.freq_base": 5000.0}
    for key, value in (own | (header or {})).items():
        if value is None:  # left out
            continue
        kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add = kinds[type(value)]
        if f"{architecture}.{key}" not in writer.kv_data[0]:
            add(f"{architecture}.{key}", value)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 7)
    writer.add_array("tokenizer.ggml.tokens", [(named or {}).get(i, f"t{i}") for i in range(config.vocab_size)])
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        parts, leaf = name.split(".")[:-1], name.split(".")[-1]
        values = tensor.float().numpy()
        if family in INTERLEAVED and parts[-1] in ("q_proj", "k_proj"):
            heads = values.shape[0] // 8
            values = values.reshape(heads, 2, 4, -1).swapaxes(1, 2).reshape(values.shape).copy()
        if family in ONE_ADDED and parts[-1].endswith("norm"):
            values = values + 1
        called = NAMES[parts[-1]]
        if family in ("gemma2", "gemma3_text") and parts[-1] == "post_attention_layernorm":
            called = "post_attention_norm"
        block = f"blk.{parts[2]}." if "layers" in parts else ""
        quantize = kind if values.ndim == 2 else None
        stored = values if quantize is None else gguf.quantize(values, quantize)
        writer.add_tensor(f"{block}{called}.{leaf}", stored, raw_dtype=quantize)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError) as raised:
        open_pretrained(str(path)).load()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and time.monotonic() - started < 5
