"""Apertus: a Llama with norms on the heads of q and k, and MLPs without a gate, whose activation is learned."""

from architectures.family import Family
from architectures.traits import QK_NORMS, Fused

APERTUS = Family(
    model_type="apertus",
    fused=Fused(
        norms=("attention_layernorm", None, "feedforward_layernorm", None),
        head_norms=QK_NORMS,
        gate_up=("up_proj",),
        plain_mlp=True,
        curve=("act_fn.alpha_p", "act_fn.alpha_n", "act_fn.beta", "act_fn.eps"),
    ),
)

FAMILIES = (APERTUS,)
