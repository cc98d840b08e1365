"""SmolLM 3: a Llama, some of whose layers do not rotate."""

from dataclasses import replace

from architectures.families.llama import LLAMA
from architectures.family import Fused
from architectures.gguf import Gguf

FAMILIES = (
    replace(
        LLAMA,
        model_type="smollm3",
        fused=Fused(window="attention"),
        gguf=Gguf("smollm3", interleaved=True, unrotated_period=4, reads=False),
    ),
)
