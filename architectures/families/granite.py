"""Granite: a Llama whose embedding, residual, attention scores and logits are multiplied by numbers of the config."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.family import Fused

FAMILIES = (replace(LLAMA, model_type="granite", fused=Fused(multipliers=True), gguf=None),)
