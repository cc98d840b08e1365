"""StarCoder 2."""

from architectures.families.llama import V_TO_O
from architectures.family import QKV, Edge, Family

STARCODER2 = Family(
    model_type="starcoder2",
    edges=(
        Edge("input_layernorm", QKV, "self_attn"),
        V_TO_O,
        Edge("post_attention_layernorm", ("mlp.c_fc",), "mlp"),
    ),
    unclipped=QKV[:2],
)

FAMILIES = (STARCODER2,)
