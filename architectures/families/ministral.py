"""Ministral: a Mistral whose layers say for themselves whether they have a window."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.traits import Fused, of_layer_type

FAMILIES = (replace(LLAMA, model_type="ministral", fused=Fused(window=of_layer_type), gguf=None),)
