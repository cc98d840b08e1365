"""Qwen 2: a Llama with biases on q, k and v, some of whose layers may see a window only."""

from dataclasses import replace

from torch import Tensor

from architectures.families.llama import LLAMA
from architectures.family import Fused


def as_stored(name: str, stored: Tensor, config: object) -> Tensor:
    return stored


QWEN2 = replace(LLAMA, model_type="qwen2", fused=Fused(window="attention"), gguf=as_stored)

FAMILIES = (QWEN2,)
