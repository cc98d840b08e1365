"""Granite MoE: a Granite whose MLPs are mixtures of experts."""

from architectures.families.mixtral import softmax_of_the_chosen
from architectures.family import Family
from architectures.traits import Experts, Fused, granites, of_multiplier

GRANITEMOE = Family(
    model_type="granitemoe",
    fused=Fused(
        attention_scale=of_multiplier,
        multipliers=granites,
        mlp="block_sparse_moe",
        experts=Experts(softmax_of_the_chosen, router="router"),
    ),
)

FAMILIES = (GRANITEMOE,)
