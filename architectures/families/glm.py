"""GLM 4 of the first kind: gate and up in one linear, a rotation that turns neighbours in half of a head."""

from architectures.family import Family
from architectures.traits import Fused

GLM = Family(
    model_type="glm",
    fused=Fused(gate_up=("gate_up_proj",), unbiased=("o_proj",), partial_rotation=True, interleaved=True),
)

FAMILIES = (GLM,)
