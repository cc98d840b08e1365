"""OLMo 3: an OLMo 2 with windows on most of its layers, which have a rotation of their own."""

from dataclasses import replace

from architectures.families.olmo2 import OLMO2
from architectures.traits import of_layer_type

OLMO3 = replace(OLMO2, model_type="olmo3", fused=replace(OLMO2.fused, window=of_layer_type, rotary_per_layer_type=True))

FAMILIES = (OLMO3,)
