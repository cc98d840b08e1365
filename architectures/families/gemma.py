"""Gemma: a Llama whose norms multiply by one plus their weight."""

from dataclasses import replace

from architectures.families.llama import LLAMA, UP_TO_DOWN, V_TO_O
from architectures.family import GATE_UP, QKV, Edge, Kind
from architectures.gguf import Gguf
from architectures.traits import Fused

ONE_PLUS = Kind(offset=1.0)

GEMMA = replace(
    LLAMA,
    model_type="gemma",
    edges=(
        Edge("input_layernorm", QKV, "self_attn", ONE_PLUS),
        V_TO_O,
        Edge("post_attention_layernorm", GATE_UP, "mlp", ONE_PLUS),
        UP_TO_DOWN,
    ),
    fused=Fused(norm_offset=1.0, scaled_embedding=True),
    gguf=Gguf("gemma", norm_offset=1.0, activation=("hidden_act", "gelu_pytorch_tanh"), own_head=False),
)

FAMILIES = (GEMMA,)
