"""Checkpoints and GGUF files of a given shape with random weights, written tensor by tensor."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from checkpoints.writer import CheckpointWriter, quantization_section
from qlinear.packing import PackedWeight

SHAPES = {
    "1.1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                 num_key_value_heads=4, vocab_size=32000, max_position_embeddings=4096),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096),
}  # fmt: skip
EPSILON = 1e-5
Q4_0_BLOCK = 32  # weights of a block: an fp16 scale and 16 bytes of codes


def linears(shape: str) -> Iterator[tuple[str, str, int, int]]:
    """(name in a checkpoint, name in a GGUF file, N, K) of a Llama's linears, in the order in which they run."""
    sizes = SHAPES[shape]
    hidden, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    kv = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    block = (
        ("self_attn.q_proj", "attn_q", hidden, hidden),
        ("self_attn.k_proj", "attn_k", kv, hidden),
        ("self_attn.v_proj", "attn_v", kv, hidden),
        ("self_attn.o_proj", "attn_output", hidden, hidden),
        ("mlp.gate_proj", "ffn_gate", ffn, hidden),
        ("mlp.up_proj", "ffn_up", ffn, hidden),
        ("mlp.down_proj", "ffn_down", hidden, ffn),
    )
    for i in range(sizes["num_hidden_layers"]):
        for name, gguf_name, n, k in block:
            yield f"model.layers.{i}.{name}", f"blk.{i}.{gguf_name}", n, k
    yield "lm_head", "output", sizes["vocab_size"], hidden


def norms(shape: str) -> Iterator[tuple[str, str]]:
    """(name in a checkpoint, name in a GGUF file) of its norms."""
    for i in range(SHAPES[shape]["num_hidden_layers"]):
        yield f"model.layers.{i}.input_layernorm", f"blk.{i}.attn_norm"
        yield f"model.layers.{i}.post_attention_layernorm", f"blk.{i}.ffn_norm"
    yield "model.norm", "output_norm"


def random_packed(n: int, k: int, bits: int, group: int, generator: np.random.Generator) -> PackedWeight:
    """Random codes and zeros; a scale under which outputs are about as large as inputs."""

    def words(rows: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(generator.integers(-(2**31), 2**31, (rows, columns), dtype=np.int32))

    variance = 2 * ((2**bits) ** 2 - 1) / 12  # of code - zero
    scales = torch.full((n, k // group), (variance * k) ** -0.5, dtype=torch.bfloat16)
    return PackedWeight(words(n, k * bits // 32), words(-(-n * bits // 32), k // group), scales, (n, k), bits)


def write_checkpoint(shape: str, bits: int, group: int, directory: Path) -> None:
    """A Llama of that shape, all linears and the head quantized; no float weight of it ever exists."""
    from transformers import LlamaConfig

    config = LlamaConfig(**SHAPES[shape], rms_norm_eps=EPSILON, tie_word_embeddings=False)
    config.architectures = ["LlamaForCausalLM"]
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((config.vocab_size, config.hidden_size), dtype=np.float32)
    with CheckpointWriter(directory) as writer:
        writer.add("model.embed_tokens.weight", torch.from_numpy(embedding).bfloat16())
        for name, _ in norms(shape):
            writer.add(f"{name}.weight", torch.ones(config.hidden_size, dtype=torch.bfloat16))
        for name, _, n, k in linears(shape):
            weight = random_packed(n, k, bits, group, generator)
            writer.add(f"{name}.weight_packed", weight.words)
            writer.add(f"{name}.weight_zero_point", weight.zeros)
            writer.add(f"{name}.weight_scale", weight.scales)
            writer.add(f"{name}.weight_shape", torch.tensor([n, k]))
        section = quantization_section(bits, group, ("lm_head", group), [])
        writer.finish(config, None, _tokenizer(config.vocab_size), section, {})


def _tokenizer(vocabulary: int):
    """One word a token: a checkpoint is not complete without a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def write_gguf(shape: str, path: Path) -> None:
    """The same shape as llama.cpp reads it, every matrix Q4_0: 4.5 bits a weight."""
    import gguf

    sizes = SHAPES[shape]
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(sizes["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")

    def matrix(name: str, n: int, k: int) -> None:
        blocks = generator.integers(0, 256, (n, k // Q4_0_BLOCK, 2 + Q4_0_BLOCK // 2), dtype=np.uint8)
        scale = np.float16(1 / (4.6 * k**0.5))
        blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(n, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    matrix("token_embd", sizes["vocab_size"], hidden)
    for _, name in norms(shape):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    for _, name, n, k in linears(shape):
        matrix(name, n, k)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_read_bytes(path: Path) -> int:
    """Bytes of a GGUF file's tensors that a token reads: all but an embedding that is not the head too."""
    import gguf

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)
