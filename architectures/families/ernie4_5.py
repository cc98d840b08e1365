"""ERNIE 4.5: a Llama whose rotation turns neighbours."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.traits import Fused

FAMILIES = (replace(LLAMA, model_type="ernie4_5", fused=Fused(interleaved=True), gguf=None),)
