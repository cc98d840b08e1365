"""Qwen 3: a Qwen 2 without biases, with a norm on every head of q and k."""

from dataclasses import replace

from architectures.families.qwen2 import QWEN2
from architectures.family import Fused
from architectures.gguf import Gguf

FAMILIES = (
    replace(
        QWEN2,
        model_type="qwen3",
        fused=Fused(window="attention", head_norms=True),
        gguf=Gguf("qwen3", biases=("q_proj", "k_proj", "v_proj")),
    ),
)
