"""Helium: a Llama whose rotation turns neighbours."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.traits import Fused

FAMILIES = (replace(LLAMA, model_type="helium", fused=Fused(interleaved=True), gguf=None),)
