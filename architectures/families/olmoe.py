"""OLMoE: a Llama with mixtures of experts, and a norm over all heads of q, and of k, together."""

from architectures.families.qwen3_moe import softmax_routing
from architectures.family import Family
from architectures.traits import QK_NORMS, Experts, Fused

OLMOE = Family(
    model_type="olmoe",
    fused=Fused(head_norms=QK_NORMS, without=(("clip_qkv", "limits q, k and v"),), experts=Experts(softmax_routing)),
)

FAMILIES = (OLMOE,)
