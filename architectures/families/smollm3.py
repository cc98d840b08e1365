"""SmolLM 3: a Llama, some of whose layers do not rotate."""

from dataclasses import replace
from typing import TYPE_CHECKING

from architectures.families.llama import LLAMA
from architectures.gguf import Gguf
from architectures.traits import Fused, of_layer_type

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _rotates(config: "Config", layer: int) -> bool:
    return bool(config.no_rope_layers[layer])


FAMILIES = (
    replace(
        LLAMA,
        model_type="smollm3",
        fused=Fused(window=of_layer_type, rotates=_rotates),
        gguf=Gguf("smollm3", interleaved=True, unrotated_period=4),
    ),
)
