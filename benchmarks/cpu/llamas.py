"""Checkpoints and GGUF files of a Llama's or a like shape with random weights, written tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from checkpoints.formats.compressed_tensors import SCALES, SHAPE, WORDS, ZEROS, quantization_section
from checkpoints.proofs import proof
from checkpoints.quantized import check_quantized
from checkpoints.writer import CheckpointWriter, Description
from engine.alike import describes
from qlinear.grid import Grid
from qlinear.packing import PackedWeight

EPSILON = 1e-5
_SAME = dict(rms_norm_eps=EPSILON, tie_word_embeddings=False)
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

    gguf_architecture = "llama"

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def linears(self) -> Iterator[tuple[str, str, int, int]]:
        """(name in a checkpoint, name in a GGUF file, N, K) of its linears, in the order in which they run.

        Those of one name in a GGUF file lie in one tensor there.
        """
        hidden, q = self.hidden_size, self.head_width * self.num_attention_heads
        kv = self.head_width * self.num_key_value_heads
        block = (
            ("self_attn.q_proj", "attn_q", q, hidden),
            ("self_attn.k_proj", "attn_k", kv, hidden),
            ("self_attn.v_proj", "attn_v", kv, hidden),
            ("self_attn.o_proj", "attn_output", hidden, q),
            *self.mlp(),
        )
        for i in range(self.num_hidden_layers):
            for name, gguf_name, n, k in block:
                yield f"model.layers.{i}.{name}", f"blk.{i}.{gguf_name}", n, k
        yield "lm_head", "output", self.vocab_size, hidden

    def mlp(self) -> Iterator[tuple[str, str, int, int]]:
        """The same of a block's MLP."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        yield "mlp.gate_proj", "ffn_gate", ffn, hidden
        yield "mlp.up_proj", "ffn_up", ffn, hidden
        yield "mlp.down_proj", "ffn_down", hidden, ffn

    def norms(self) -> Iterator[tuple[str, str, int]]:
        """(name in a checkpoint, name in a GGUF file, width) of its norms."""
        for i in range(self.num_hidden_layers):
            yield f"model.layers.{i}.input_layernorm", f"blk.{i}.attn_norm", self.hidden_size
            yield f"model.layers.{i}.post_attention_layernorm", f"blk.{i}.ffn_norm", self.hidden_size
        yield "model.norm", "output_norm", self.hidden_size

    def routers(self) -> Iterator[tuple[str, str, int]]:
        """(name in a checkpoint, name in a GGUF file, experts) of its routers, which stay float."""
        return iter(())

    def config(self):
        from transformers import LlamaConfig

        return LlamaConfig(**vars(self), architectures=["LlamaForCausalLM"], **_SAME)

    def describe(self, writer) -> None:
        """What a GGUF file's header says."""
        import gguf

        writer.add_context_length(self.max_position_embeddings)
        writer.add_embedding_length(self.hidden_size)
        writer.add_block_count(self.num_hidden_layers)
        writer.add_feed_forward_length(self.intermediate_size)
        writer.add_head_count(self.num_attention_heads)
        writer.add_head_count_kv(self.num_key_value_heads)
        writer.add_layer_norm_rms_eps(EPSILON)
        writer.add_rope_dimension_count(self.head_width)
        writer.add_vocab_size(self.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
        writer.add_tokenizer_model("none")


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
    config = llama.config()
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((config.vocab_size, config.hidden_size), dtype=np.float32)
    with CheckpointWriter(directory) as writer:
        writer.add("model.embed_tokens.weight", torch.from_numpy(embedding).bfloat16())
        for name, _, width in llama.norms():
            writer.add(f"{name}.weight", torch.ones(width, dtype=torch.bfloat16))
        for name, _, experts in llama.routers():
            writer.add(f"{name}.weight", torch.from_numpy(_router(llama, experts, generator)).bfloat16())
        for name, _, n, k in llama.linears():
            weight = random_packed(n, k, bits, group_size, generator)
            parts = {WORDS: weight.words, ZEROS: weight.zeros, SCALES: weight.scales, SHAPE: torch.tensor([n, k])}
            for part, tensor in parts.items():
                writer.add(f"{name}.{part}", tensor)
        section = quantization_section(Grid(bits, group_size), ("lm_head", group_size), [])
        tokenizer = _tokenizer(config.vocab_size)

        def check(folder: Path) -> str | None:
            return proof(folder, tokenizer, check_quantized(folder), describes)

        writer.finish(Description(config, None, tokenizer), section, {}, check)


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
    writer = gguf.GGUFWriter(path, llama.gguf_architecture, use_temp_file=True)
    llama.describe(writer)
    matrices = [(name, n, k) for _, name, n, k in llama.linears()]
    for (name, n, k), same in groupby([("token_embd", llama.vocab_size, llama.hidden_size), *sorted(matrices)]):
        stacked = (len(list(same)),)
        blocks = generator.integers(0, 256, (*stacked, n, k // Q4_0_BLOCK, 2 + Q4_0_BLOCK // 2), dtype=np.uint8)
        scale = np.float16(1 / (4.6 * k**0.5))
        blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
        rows = blocks.reshape(*(stacked if stacked > (1,) else ()), n, -1)
        writer.add_tensor(f"{name}.weight", rows, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    for _, name, width in llama.norms():
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for _, name, experts in llama.routers():
        writer.add_tensor(f"{name}.weight", _router(llama, experts, generator))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _router(llama: Llama, experts: int, generator: np.random.Generator) -> np.ndarray:
    """Logits of about 1 for each expert: every token goes to others."""
    shape = experts, llama.hidden_size
    return generator.standard_normal(shape, dtype=np.float32) / np.float32(llama.hidden_size**0.5)


def gguf_read_bytes(path: Path) -> int:
    """Bytes of a GGUF file's tensors that a token reads: of experts those that are chosen, and all of the rest but an
    embedding that is not the head too.
    """
    import gguf

    file = gguf.GGUFReader(path)
    architecture = file.get_field("general.architecture").contents()
    used = file.get_field(f"{architecture}.expert_used_count")
    sizes = {}
    for tensor in file.tensors:
        # the last dimension is the outermost
        experts = int(tensor.shape[-1]) if tensor.name.endswith("_exps.weight") else 1
        sizes[tensor.name] = int(tensor.n_bytes) // experts * (used.contents() if experts > 1 else 1)
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)
