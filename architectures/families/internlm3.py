"""InternLM 3: a Llama."""

from dataclasses import replace

from architectures.families.llama import LLAMA

FAMILIES = (replace(LLAMA, model_type="internlm3", gguf=None),)
