"""Qwen 2: a Llama with biases on q, k and v, some of whose layers may see a window only."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.gguf import Gguf
from architectures.traits import Fused, of_layer_type

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    fused=Fused(window=of_layer_type),
    gguf=Gguf("qwen2", biases=("q_proj", "k_proj", "v_proj"), own_head_dim=False),
)

FAMILIES = (QWEN2,)
