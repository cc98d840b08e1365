"""Llama, and what many families have in common with it."""

from architectures.family import GATE_UP, QKV, Edge, Family
from architectures.gguf import Gguf
from architectures.heads import VALUE
from architectures.traits import Fused

V_TO_O = Edge("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", VALUE)
UP_TO_DOWN = Edge("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj")


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
    gguf=Gguf(
        "llama",
        interleaved=True,
        biases=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ropes=("linear", "yarn", "llama3", "longrope"),
    ),
)

FAMILIES = (LLAMA,)
