"""Qwen 3: a Qwen 2 without biases, with a norm on every head of q and k."""

from dataclasses import replace

from architectures.families.qwen2 import QWEN2
from architectures.gguf import Gguf
from architectures.traits import QK_NORMS, Fused, of_layer_type

FAMILIES = (
    replace(
        QWEN2,
        model_type="qwen3",
        fused=Fused(window=of_layer_type, head_norms=QK_NORMS),
        gguf=Gguf("qwen3", biases=("q_proj", "k_proj", "v_proj")),
    ),
)
