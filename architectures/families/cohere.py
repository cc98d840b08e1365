"""Cohere's Command R and Aya: attention and MLP side by side behind one layer norm, logits that are scaled."""

from typing import TYPE_CHECKING

from architectures.family import Family
from architectures.traits import Fused, Multipliers, always_parallel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _scaled_logits(config: "Config") -> Multipliers:
    return Multipliers(logits=1 / config.logit_scale)


COHERE = Family(
    model_type="cohere",
    fused=Fused(
        norms=("input_layernorm", None, None, None),
        layer_norm=True,
        epsilon="layer_norm_eps",
        parallel=always_parallel,
        interleaved=True,
        multipliers=_scaled_logits,
        without=(("use_qk_norm", "has a layer norm of its own for every head of q and k"),),
    ),
)

FAMILIES = (COHERE,)
