"""OLMo 2: norms behind attention and MLP only, and over all heads of q, and of k, together."""

from architectures.family import Family
from architectures.traits import QK_NORMS, Fused

BEHIND = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
OLMO2 = Family(model_type="olmo2", fused=Fused(norms=BEHIND, head_norms=QK_NORMS))

FAMILIES = (OLMO2,)
