"""dots.llm1: a Qwen 3 with mixtures of experts behind some dense blocks, routed as DeepSeek-V3 does it."""

from architectures.families.glm4_moe import CORRECTED
from architectures.family import Family
from architectures.traits import QK_NORMS, Fused, of_layer_type

DOTS1 = Family(model_type="dots1", fused=Fused(window=of_layer_type, head_norms=QK_NORMS, experts=CORRECTED))

FAMILIES = (DOTS1,)
