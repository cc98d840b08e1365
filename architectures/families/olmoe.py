"""OLMoE: a Llama with mixtures of experts, and a norm over all heads of q, and of k, together."""

from architectures.families.qwen3_moe import softmax_routing
from architectures.family import Family
from architectures.gguf import Gguf, GgufExperts
from architectures.traits import QK_NORMS, Experts, Fused

OLMOE = Family(
    model_type="olmoe",
    fused=Fused(head_norms=QK_NORMS, without=(("clip_qkv", "limits q, k and v"),), experts=Experts(softmax_routing)),
    gguf=Gguf(
        "olmoe",
        own_head_dim=False,
        grouped_heads=False,
        experts=GgufExperts(normalized=False, width="intermediate_size", named_width=False),
        reads=False,
    ),
)

FAMILIES = (OLMOE,)
