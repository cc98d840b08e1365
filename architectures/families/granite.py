"""Granite: a Llama whose embedding, residual, attention scores and logits are multiplied by numbers of the config."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.traits import Fused, granites, of_multiplier

GRANITE = replace(
    LLAMA, model_type="granite", fused=Fused(attention_scale=of_multiplier, multipliers=granites), gguf=None
)

FAMILIES = (GRANITE,)
