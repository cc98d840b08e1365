"""SmolLM 3: a Llama, some of whose layers do not rotate."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.family import Fused

FAMILIES = (replace(LLAMA, model_type="smollm3", fused=Fused(window="attention"), gguf=None),)
