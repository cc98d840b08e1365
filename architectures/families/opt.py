"""OPT, and Galactica, which is an OPT with gelu."""

from typing import TYPE_CHECKING

from architectures.family import QKV, Edge, Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def _norm_feeds_linears_only(config: "Config") -> bool:
    # opt-350m puts its norms after the residual sum, so their output is also the next residual.
    return config.do_layer_norm_before and config.layer_norm_elementwise_affine


def _relu(config: "Config") -> bool:
    # relu(x / s) = relu(x) / s
    return config.activation_function == "relu"


OPT = Family(
    model_type="opt",
    blocks="model.decoder.layers",
    edges=(
        Edge("self_attn_layer_norm", QKV, "self_attn", when=_norm_feeds_linears_only),
        Edge("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj"),
        Edge("final_layer_norm", ("fc1",), "fc1", when=_norm_feeds_linears_only),
        Edge("fc1", ("fc2",), "fc2", when=_relu),
    ),
    unclipped=QKV[:2],
)

FAMILIES = (OPT,)
