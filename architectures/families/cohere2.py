"""Cohere 2: a Cohere with windows on most of its layers; the others do not rotate."""

from dataclasses import replace
from typing import TYPE_CHECKING

from architectures.families.cohere import COHERE
from architectures.traits import of_layer_type

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _rotates(config: "Config", layer: int) -> bool:
    return of_layer_type(config, layer) is not None


COHERE2 = replace(
    COHERE, model_type="cohere2", fused=replace(COHERE.fused, window=of_layer_type, rotates=_rotates, without=())
)

FAMILIES = (COHERE2,)
