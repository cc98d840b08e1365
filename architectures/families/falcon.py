"""Falcon, of the first kind (one key/value head, or one for each query head) and of the new one (grouped heads)."""

from functools import partial
from typing import TYPE_CHECKING

from architectures.families.bloom import DENSE, FC1, FUSED_QKV
from architectures.family import Edge, Family, Kind
from architectures.heads import interleaved_values, shared_heads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _kv_heads(config: "Config") -> int:
    # The multi-query falcons of the first kind have one k/v head whatever num_kv_heads says.
    grouped = config.new_decoder_architecture or not config.multi_query
    return config.num_kv_heads if grouped else 1


def _two_norms(config: "Config") -> bool:
    return config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2)


def _sequential(config: "Config") -> bool:
    return not config.new_decoder_architecture and not config.parallel_attn


def _one_norm(config: "Config") -> bool:
    return not _two_norms(config) and not _sequential(config)


VALUE = Kind(rows=partial(interleaved_values, kv_heads=_kv_heads), channels=partial(shared_heads, kv_heads=_kv_heads))

FALCON = Family(
    model_type="falcon",
    blocks="transformer.h",
    edges=(
        Edge("input_layernorm", (FC1, FUSED_QKV), "", when=_one_norm),
        Edge("input_layernorm", (FUSED_QKV,), "self_attention", when=_sequential),
        Edge("ln_attn", (FUSED_QKV,), "self_attention", when=_two_norms),
        Edge(FUSED_QKV, (DENSE,), DENSE, VALUE),
        Edge("post_attention_layernorm", (FC1,), "mlp", when=_sequential),
        Edge("ln_mlp", (FC1,), "mlp", when=_two_norms),
    ),
    unclipped=(FUSED_QKV,),
)

FAMILIES = (FALCON,)
