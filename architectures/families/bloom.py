"""BLOOM."""

from typing import TYPE_CHECKING

from architectures.family import Edge, Family
from architectures.heads import INTERLEAVED_VALUE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config

# Falcon calls them the same.
FUSED_QKV, DENSE, FC1 = "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h"


def _norm_feeds_linears_only(config: "Config") -> bool:
    return not config.apply_residual_connection_post_layernorm


BLOOM = Family(
    model_type="bloom",
    blocks="transformer.h",
    edges=(
        Edge("input_layernorm", (FUSED_QKV,), "self_attention", when=_norm_feeds_linears_only),
        Edge(FUSED_QKV, (DENSE,), DENSE, INTERLEAVED_VALUE),
        Edge("post_attention_layernorm", (FC1,), "mlp", when=_norm_feeds_linears_only),
    ),
    unclipped=(FUSED_QKV,),
)

FAMILIES = (BLOOM,)
