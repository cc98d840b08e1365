"""Qwen 2 MoE: a Qwen 2 with mixtures of experts, and an expert for every token that a gate weighs."""

from architectures.families.qwen3_moe import softmax_routing
from architectures.family import Family
from architectures.traits import Experts, Fused, of_layer_type

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    fused=Fused(
        window=of_layer_type,
        experts=Experts(softmax_routing, shared="shared_expert", shared_gate="shared_expert_gate"),
    ),
)

FAMILIES = (QWEN2_MOE,)
