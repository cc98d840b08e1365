"""Granite MoE: a Granite whose MLPs are mixtures of experts."""

from architectures.families.mixtral import softmax_of_the_chosen
from architectures.family import Experts, Family, Fused

GRANITEMOE = Family(
    model_type="granitemoe",
    fused=Fused(multipliers=True, mlp="block_sparse_moe", experts=Experts(softmax_of_the_chosen, router="router")),
)

FAMILIES = (GRANITEMOE,)
