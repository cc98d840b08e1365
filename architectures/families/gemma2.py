"""Gemma 2: norms before and after attention and MLP, capped scores, windows on every other layer."""

from dataclasses import replace

from architectures.families.gemma import GEMMA, ONE_PLUS
from architectures.families.llama import UP_TO_DOWN, V_TO_O
from architectures.family import GATE_UP, QKV, Edge
from architectures.gguf import Gguf
from architectures.traits import Fused, of_layer_type, of_query_scalar

# post_attention_layernorm stands behind the attention here, on its way to the residual: it feeds no linear.
GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    edges=(
        Edge("input_layernorm", QKV, "self_attn", ONE_PLUS),
        V_TO_O,
        Edge("pre_feedforward_layernorm", GATE_UP, "mlp", ONE_PLUS),
        UP_TO_DOWN,
    ),
    fused=Fused(
        norm_offset=1.0,
        scaled_embedding=True,
        attention_scale=of_query_scalar,
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        activation="hidden_activation",
        window=of_layer_type,
        attention_cap="attn_logit_softcapping",
        logit_cap="final_logit_softcapping",
    ),
    gguf=Gguf(
        "gemma2",
        norm_offset=1.0,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        own_head=False,
        window_period=2,
        wide_layers=46,
        ropes=(),
    ),
)

FAMILIES = (GEMMA2,)
