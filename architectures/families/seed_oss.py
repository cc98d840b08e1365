"""Seed-OSS: a Llama with biases on q, k and v."""

from dataclasses import replace

from architectures.families.llama import LLAMA

FAMILIES = (replace(LLAMA, model_type="seed_oss", gguf=None),)
