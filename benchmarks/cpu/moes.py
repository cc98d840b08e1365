"""Random models of Qwen3-MoE's shape: a Llama with norms on its heads and, as MLPs, mixtures of experts."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cpu.llamas import _SAME, Llama


@dataclass(frozen=True)
class QwenMoe(Llama):
    """The sizes of a config.json, by the names they have there."""

    head_dim: int = 128
    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 768

    gguf_architecture = "qwen3moe"

    @property
    def head_width(self) -> int:
        return self.head_dim

    def mlp(self) -> Iterator[tuple[str, str, int, int]]:
        hidden, ffn = self.hidden_size, self.moe_intermediate_size
        for expert in range(self.num_experts):
            yield f"mlp.experts.{expert}.gate_proj", "ffn_gate_exps", ffn, hidden
            yield f"mlp.experts.{expert}.up_proj", "ffn_up_exps", ffn, hidden
            yield f"mlp.experts.{expert}.down_proj", "ffn_down_exps", hidden, ffn

    def norms(self) -> Iterator[tuple[str, str, int]]:
        yield from super().norms()
        for i in range(self.num_hidden_layers):
            for head in ("q", "k"):
                yield f"model.layers.{i}.self_attn.{head}_norm", f"blk.{i}.attn_{head}_norm", self.head_dim

    def routers(self) -> Iterator[tuple[str, str, int]]:
        for i in range(self.num_hidden_layers):
            yield f"model.layers.{i}.mlp.gate", f"blk.{i}.ffn_gate_inp", self.num_experts

    def config(self):
        from transformers import Qwen3MoeConfig

        return Qwen3MoeConfig(**vars(self), norm_topk_prob=True, architectures=["Qwen3MoeForCausalLM"], **_SAME)

    def describe(self, writer) -> None:
        super().describe(writer)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_expert_count(self.num_experts)
        writer.add_expert_used_count(self.num_experts_per_tok)
        writer.add_expert_feed_forward_length(self.moe_intermediate_size)


# Qwen3-30B-A3B with a quarter of its 48 blocks and about a fifth of its 151,936 tokens, to fit beside a peer.
MOES = {"30b-a3b-12l": QwenMoe(2048, 6144, 12, 32, 4, 32000)}
