"""Gemma 3: a Gemma 2 with norms on the heads and a rotation for each kind of layer; also inside a model that sees."""

from dataclasses import replace

from architectures.families.gemma2 import GEMMA2
from architectures.traits import QK_NORMS

GEMMA3_TEXT = replace(
    GEMMA2,
    model_type="gemma3_text",
    fused=replace(GEMMA2.fused, attention_cap=None, head_norms=QK_NORMS, rotary_per_layer_type=True),
    gguf=replace(
        GEMMA2.gguf,
        architecture="gemma3",
        own_head=True,
        window_period=6,
        wide_layers=62,
        ropes=("linear",),
        swa_rope=True,
    ),
)
GEMMA3 = replace(GEMMA3_TEXT, model_type="gemma3", blocks="model.language_model.layers", fused=None, gguf=None)

FAMILIES = (GEMMA3_TEXT, GEMMA3)
