"""Qwen 2 MoE: a Qwen 2 with mixtures of experts, and an expert for every token that a gate weighs."""

from architectures.families.qwen3_moe import softmax_routing
from architectures.family import Family
from architectures.gguf import Gguf, GgufExperts
from architectures.traits import Experts, Fused, of_layer_type

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    fused=Fused(
        window=of_layer_type,
        experts=Experts(softmax_routing, shared="shared_expert", shared_gate="shared_expert_gate"),
    ),
    gguf=Gguf(
        "qwen2moe",
        biases=("q_proj", "k_proj", "v_proj"),
        own_head_dim=False,
        experts=GgufExperts(normalized=False, shared_width="shared_expert_intermediate_size"),
        reads=False,
    ),
)

FAMILIES = (QWEN2_MOE,)
