"""StarCoder 2: a Llama with layer norms, biases, and MLPs without a gate."""

from architectures.families.llama import V_TO_O
from architectures.family import QKV, Edge, Family
from architectures.traits import Fused, of_config

STARCODER2 = Family(
    model_type="starcoder2",
    edges=(
        Edge("input_layernorm", QKV, "self_attn"),
        V_TO_O,
        Edge("post_attention_layernorm", ("mlp.c_fc",), "mlp"),
    ),
    unclipped=QKV[:2],
    fused=Fused(
        gate_up=("c_fc",),
        down="c_proj",
        plain_mlp=True,
        layer_norm=True,
        norm_biases=True,
        epsilon="norm_epsilon",
        window=of_config,
    ),
)

FAMILIES = (STARCODER2,)
