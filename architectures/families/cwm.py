"""CWM: a Llama with windows on most of its layers."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.traits import Fused, of_layer_type

FAMILIES = (replace(LLAMA, model_type="cwm", fused=Fused(window=of_layer_type), gguf=None),)
