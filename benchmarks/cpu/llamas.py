"""Checkpoints and GGUF files of a Llama's shape with random weights, written tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from checkpoints.formats.compressed_tensors import SCALES, SHAPE, WORDS, ZEROS, quantization_section
from checkpoints.writer import CheckpointWriter, Description
from qlinear.packing import PackedWeight

EPSILON = 1e-5
Q4_0_BLOCK = 32  # weights of a block: an fp16 scale and 16 bytes of codes


@dataclass(frozen=True)
class Llama:
    """The sizes of a config.json, by the names they have there."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int = 4096

    def linears(self) -> Iterator[tuple[str, str, int, int]]:
        """(name in a checkpoint, name in a GGUF file, N, K) of its linears, in the order in which they run."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        kv = hidden // self.num_attention_heads * self.num_key_value_heads
        block = (
            ("self_attn.q_proj", "attn_q", hidden, hidden),
            ("self_attn.k_proj", "attn_k", kv, hidden),
            ("self_attn.v_proj", "attn_v", kv, hidden),
            ("self_attn.o_proj", "attn_output", hidden, hidden),
            ("mlp.gate_proj", "ffn_gate", ffn, hidden),
            ("mlp.up_proj", "ffn_up", ffn, hidden),
            ("mlp.down_proj", "ffn_down", hidden, ffn),
        )
        for i in range(self.num_hidden_layers):
            for name, gguf_name, n, k in block:
                yield f"model.layers.{i}.{name}", f"blk.{i}.{gguf_name}", n, k
        yield "lm_head", "output", self.vocab_size, hidden

    def norms(self) -> Iterator[tuple[str, str]]:
        """(name in a checkpoint, name in a GGUF file) of its norms."""
        for i in range(self.num_hidden_layers):
            yield f"model.layers.{i}.input_layernorm", f"blk.{i}.attn_norm"
            yield f"model.layers.{i}.post_attention_layernorm", f"blk.{i}.ffn_norm"
        yield "model.norm", "output_norm"


LLAMAS = {"1.1b": Llama(2048, 5632, 22, 32, 4, 32000), "7b": Llama(4096, 11008, 32, 32, 32, 32000)}


def random_packed(n: int, k: int, bits: int, group_size: int, generator: np.random.Generator) -> PackedWeight:
    """Random codes and zeros; a scale under which outputs are about as large as inputs."""

    def words(rows: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(generator.integers(-(2**31), 2**31, (rows, columns), dtype=np.int32))

    variance = 2 * ((2**bits) ** 2 - 1) / 12  # of code - zero
    scales = torch.full((n, k // group_size), (variance * k) ** -0.5, dtype=torch.bfloat16)
    return PackedWeight(words(n, k * bits // 32), words(-(-n * bits // 32), k // group_size), scales, (n, k), bits)


def write_checkpoint(llama: Llama, bits: int, group_size: int, directory: Path) -> None:
    """All linears and the head quantized; no float weight of it ever exists."""
    from transformers import LlamaConfig

    config = LlamaConfig(**vars(llama), rms_norm_eps=EPSILON, tie_word_embeddings=False)
    config.architectures = ["LlamaForCausalLM"]
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((config.vocab_size, config.hidden_size), dtype=np.float32)
    with CheckpointWriter(directory) as writer:
        writer.add("model.embed_tokens.weight", torch.from_numpy(embedding).bfloat16())
        for name, _ in llama.norms():
            writer.add(f"{name}.weight", torch.ones(config.hidden_size, dtype=torch.bfloat16))
        for name, _, n, k in llama.linears():
            weight = random_packed(n, k, bits, group_size, generator)
            parts = {WORDS: weight.words, ZEROS: weight.zeros, SCALES: weight.scales, SHAPE: torch.tensor([n, k])}
            for part, tensor in parts.items():
                writer.add(f"{name}.{part}", tensor)
        section = quantization_section(bits, group_size, ("lm_head", group_size), [])
        writer.finish(Description(config, None, _tokenizer(config.vocab_size)), section, {})


def _tokenizer(vocabulary: int):
    """One word a token: a checkpoint is not complete without a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def write_gguf(llama: Llama, path: Path) -> None:
    """The same shape as llama.cpp reads it, every matrix Q4_0: 4.5 bits a weight."""
    import gguf

    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    _describe(llama, writer)
    for name, n, k in [
        ("token_embd", llama.vocab_size, llama.hidden_size),
        *((name, n, k) for _, name, n, k in llama.linears()),
    ]:
        blocks = generator.integers(0, 256, (n, k // Q4_0_BLOCK, 2 + Q4_0_BLOCK // 2), dtype=np.uint8)
        scale = np.float16(1 / (4.6 * k**0.5))
        blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(n, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    for _, name in llama.norms():
        writer.add_tensor(f"{name}.weight", np.ones(llama.hidden_size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(llama: Llama, writer) -> None:
    import gguf

    writer.add_context_length(llama.max_position_embeddings)
    writer.add_embedding_length(llama.hidden_size)
    writer.add_block_count(llama.num_hidden_layers)
    writer.add_feed_forward_length(llama.intermediate_size)
    writer.add_head_count(llama.num_attention_heads)
    writer.add_head_count_kv(llama.num_key_value_heads)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_dimension_count(llama.hidden_size // llama.num_attention_heads)
    writer.add_vocab_size(llama.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")


def gguf_read_bytes(path: Path) -> int:
    """Bytes of a GGUF file's tensors that a token reads: all but an embedding that is not the head too."""
    import gguf

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)
