"""GPT-NeoX and Pythia."""

from architectures.family import Edge, Family
from architectures.heads import INTERLEAVED_VALUE

GPT_NEOX = Family(
    model_type="gpt_neox",
    blocks="gpt_neox.layers",
    edges=(
        Edge("input_layernorm", ("attention.query_key_value",), "attention"),
        Edge("attention.query_key_value", ("attention.dense",), "attention.dense", INTERLEAVED_VALUE),
        Edge("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp"),
    ),
    unclipped=("attention.query_key_value",),
)

FAMILIES = (GPT_NEOX,)
