"""HunYuan, dense: a Llama with norms on the heads of q and k, which come after the rotation."""

from architectures.family import Family
from architectures.traits import Fused


def _rope(given: dict, head_dim: int) -> dict:
    """A dynamic one with an `alpha` is one of a longer period, whatever the length (transformers' modeling file)."""
    if given["rope_type"] != "dynamic" or not given.get("alpha"):
        return given
    theta = given["rope_theta"] * given["alpha"] ** (head_dim / (head_dim - 2))
    return {"rope_type": "default", "rope_theta": theta}


HUNYUAN_V1_DENSE = Family(
    model_type="hunyuan_v1_dense",
    fused=Fused(head_norms=("query_layernorm", "key_layernorm"), turned_first=True, rope=_rope),
)

FAMILIES = (HUNYUAN_V1_DENSE,)
