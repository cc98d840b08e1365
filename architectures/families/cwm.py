"""CWM: a Llama with windows on most of its layers."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.family import Fused

FAMILIES = (replace(LLAMA, model_type="cwm", fused=Fused(window="attention"), gguf=None),)
