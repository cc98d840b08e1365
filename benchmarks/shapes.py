"""Models of a given shape with random weights: quantized ones for the cpu target, and GGUF files for llama.cpp."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from checkpoints.pretrained import build_empty
from checkpoints.store import groups_of
from qlinear.backends.cpu import CpuBackend
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight
from qlinear.replace import join_groups, prepare, replace_linear

SHAPES = {
    "1.1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                 num_key_value_heads=4, vocab_size=32000, max_position_embeddings=4096),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096),
}  # fmt: skip
EPSILON = 1e-5
Q4_0_BLOCK = 32  # weights of a block: an fp16 scale and 16 bytes of codes


def random_packed(n: int, k: int, bits: int, group: int, generator: torch.Generator) -> PackedWeight:
    """Random codes and zeros; a scale under which outputs are about as large as inputs."""

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64, generator=generator).to(torch.int32)

    spread = (2 * ((2**bits) ** 2 - 1) / 12) ** 0.5  # of code - zero
    scales = torch.full((n, k // group), 1 / (spread * k**0.5), dtype=torch.bfloat16)
    return PackedWeight(words(n, k * bits // 32), words(-(-n * bits // 32), k // group), scales, (n, k), bits)


def random_model(shape: str, bits: int, group: int, join: bool) -> nn.Module:
    """A Llama of that shape, all linears and the head quantized, prepared for the native cpu backend."""
    from transformers import LlamaConfig

    model = build_empty(LlamaConfig(**SHAPES[shape], rms_norm_eps=EPSILON), torch.bfloat16, False)
    generator = torch.Generator().manual_seed(0)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear):
            weight = random_packed(linear.out_features, linear.in_features, bits, group, generator)
            replace_linear(model, name, QLinearPerGrp(weight))
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = torch.ones if parameter.dim() == 1 else torch.randn
        filled = nn.Parameter(value(parameter.shape, dtype=torch.bfloat16), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, filled)
    if join:
        join_groups(model, groups_of(model))
    prepare(model, CpuBackend())
    return model


def write_gguf(shape: str, path: Path) -> None:
    """The same shape as llama.cpp reads it, every matrix Q4_0: 4.5 bits a weight."""
    import gguf

    sizes = SHAPES[shape]
    hidden, ffn, heads, kv_heads = (
        sizes[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    kv = hidden // heads * kv_heads
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(sizes["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")

    def matrix(name: str, n: int, k: int) -> None:
        blocks = generator.integers(0, 256, (n, k // Q4_0_BLOCK, 2 + Q4_0_BLOCK // 2), dtype=np.uint8)
        scale = np.float16(1 / (4.6 * k**0.5))
        blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(n, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(hidden, np.float32))

    matrix("token_embd.weight", sizes["vocab_size"], hidden)
    matrix("output.weight", sizes["vocab_size"], hidden)
    norm("output_norm.weight")
    for i in range(sizes["num_hidden_layers"]):
        for name, n, k in (
            ("attn_q", hidden, hidden), ("attn_k", kv, hidden), ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn),
        ):  # fmt: skip
            matrix(f"blk.{i}.{name}.weight", n, k)
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
