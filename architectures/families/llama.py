"""Llama, and what many families have in common with it."""

from typing import TYPE_CHECKING

from architectures.family import GATE_UP, QKV, Edge, Family
from architectures.heads import VALUE
from architectures.traits import Fused

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig as Config

V_TO_O = Edge("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", VALUE)
UP_TO_DOWN = Edge("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj")


def undo_rotary_interleave(stored: "Tensor", heads: int) -> "Tensor":
    """Rows `(heads, half, 2)` back to `(heads, 2, half)`.

    llama.cpp's converter interleaves the two halves that a rotation pairs (`LlamaModel.permute` in its
    `convert_hf_to_gguf.py`); transformers' modules keep them apart.
    """
    return stored.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(stored.shape)


def _from_gguf(name: str, stored: "Tensor", config: "Config") -> "Tensor":
    """Files of Mistral and SmolLM say "llama" too."""
    if ".attn_q." in name:
        return undo_rotary_interleave(stored, config.num_attention_heads)
    if ".attn_k." in name:
        return undo_rotary_interleave(stored, config.num_key_value_heads)
    return stored


LLAMA = Family(
    model_type="llama",
    edges=(
        Edge("input_layernorm", QKV, "self_attn"),
        V_TO_O,
        Edge("post_attention_layernorm", GATE_UP, "mlp"),
        UP_TO_DOWN,
    ),
    unclipped=QKV[:2],
    fused=Fused(),
    gguf=_from_gguf,
)

FAMILIES = (LLAMA,)
