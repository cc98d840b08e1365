"""Mistral: a Llama whose positions may see a window only; llama.cpp calls it one, and knows no window in it."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.traits import Fused, of_config

FAMILIES = (replace(LLAMA, model_type="mistral", fused=Fused(window=of_config), gguf=replace(LLAMA.gguf, reads=False)),)
