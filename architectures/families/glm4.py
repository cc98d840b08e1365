"""GLM 4 of 2025: a GLM with norms behind attention and MLP, too."""

from dataclasses import replace

from architectures.families.glm import GLM

NORMS = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
GLM4 = replace(GLM, model_type="glm4", fused=replace(GLM.fused, norms=NORMS))

FAMILIES = (GLM4,)
