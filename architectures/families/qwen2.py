"""Qwen 2: a Llama with biases on q, k and v, some of whose layers may see a window only."""

from dataclasses import replace
from typing import TYPE_CHECKING

from architectures.families.llama import LLAMA
from architectures.traits import Fused, of_layer_type

if TYPE_CHECKING:
    from torch import Tensor


def as_stored(name: str, stored: "Tensor", config: object) -> "Tensor":
    return stored


QWEN2 = replace(LLAMA, model_type="qwen2", fused=Fused(window=of_layer_type), gguf=as_stored)

FAMILIES = (QWEN2,)
