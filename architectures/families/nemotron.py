"""Nemotron, Minitron too: a Llama with layer norms that multiply by one plus their weight, and MLPs without a gate."""

from architectures.family import Family
from architectures.traits import Fused

NEMOTRON = Family(
    model_type="nemotron",
    fused=Fused(
        layer_norm=True,
        norm_biases=True,
        norm_offset=1.0,
        epsilon="norm_eps",
        gate_up=("up_proj",),
        plain_mlp=True,
        partial_rotation=True,
    ),
)

FAMILIES = (NEMOTRON,)
