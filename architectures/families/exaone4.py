"""EXAONE 4: norms behind attention and MLP only, and on every head; where some layers have windows, the others do not
rotate.
"""

from typing import TYPE_CHECKING

from architectures.families.olmo2 import BEHIND
from architectures.family import Family
from architectures.traits import QK_NORMS, Fused, of_layer_type

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _rotates(config: "Config", layer: int) -> bool:
    return config.sliding_window is None or config.layer_types[layer] == "sliding_attention"


EXAONE4 = Family(
    model_type="exaone4",
    fused=Fused(norms=BEHIND, head_norms=QK_NORMS, window=of_layer_type, rotates=_rotates),
)

FAMILIES = (EXAONE4,)
