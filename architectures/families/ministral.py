"""Ministral: a Mistral whose layers say for themselves whether they have a window."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.family import Fused

FAMILIES = (replace(LLAMA, model_type="ministral", fused=Fused(window="attention"), gguf=None),)
