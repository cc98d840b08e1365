"""Phi 3: a Llama with q, k and v in one linear, gate and up in another."""

from architectures.family import Edge, Family
from architectures.gguf import Gguf
from architectures.heads import STACKED_UP, STACKED_VALUE
from architectures.traits import Fused, of_config

PHI3 = Family(
    model_type="phi3",
    edges=(
        Edge("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
        Edge("self_attn.qkv_proj", ("self_attn.o_proj",), "self_attn.o_proj", STACKED_VALUE),
        Edge("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        Edge("mlp.gate_up_proj", ("mlp.down_proj",), "mlp.down_proj", STACKED_UP),
    ),
    unclipped=("self_attn.qkv_proj",),
    fused=Fused(partial_rotation=True, window=of_config, qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
    gguf=Gguf("phi3", own_head_dim=False, partial_rotary=True, ropes=("longrope",)),
)

FAMILIES = (PHI3,)
