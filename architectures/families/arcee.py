"""Arcee: a Llama with MLPs without a gate, whose activation is the square of ReLU's."""

from architectures.family import Family
from architectures.traits import Fused

ARCEE = Family(model_type="arcee", fused=Fused(gate_up=("up_proj",), plain_mlp=True))

FAMILIES = (ARCEE,)
