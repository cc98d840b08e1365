"""Which norm or linear feeds which linears, per architecture: one row of data each, matched on `config.model_type`.

An edge stands here only where moving a positive factor per channel from the consumers back into the producer leaves
the float function as it is. So there is none through an ungated GELU, and none out of a norm whose output is also
the residual. Module names and their order are those of the `transformers` classes, and therefore of the
MIT-Han-Lab scale files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from qlinear.errors import ModelError

# Every function of a config in this table is given the decoder's own: `config.get_text_config()`.
Index = Callable[[PreTrainedConfig], Tensor]


@dataclass(frozen=True)
class Kind:
    """How a vector of scales is taken out of the producer and brought to the consumers.

    offset: what the producer adds to its weight before it multiplies (gemma's norms use `1 + weight`).
    rows: which output rows of the producer the vector divides, in the vector's order; None: all of them.
    channels: for each input channel of the consumers, its entry of the vector; None: one entry each, in order.
    """

    offset: float = 0.0
    rows: Index | None = None
    channels: Index | None = None


def _always(config: PreTrainedConfig) -> bool:
    return True


PLAIN = Kind()


@dataclass(frozen=True)
class Edge:
    """One rescaling: `prev` produces, `layers` consume; names are local to the block.

    inspect: the module whose output the search compares, `""` for the whole block. All `layers` see one input.
    when: whether a model with this config has the edge.
    """

    prev: str
    layers: tuple[str, ...]
    inspect: str
    kind: Kind = PLAIN
    when: Callable[[PreTrainedConfig], bool] = _always


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    blocks: where in the model the list of decoder blocks is.
    unclipped: linears whose loss passes through the product of q and k; clipping them does not pay.
    """

    model_types: tuple[str, ...]
    blocks: str
    edges: tuple[Edge, ...]
    unclipped: tuple[str, ...]


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _kv_heads(config: PreTrainedConfig) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _falcon_kv_heads(config: PreTrainedConfig) -> int:
    # The multi-query falcons of the first kind have one k/v head whatever num_kv_heads says.
    grouped = config.new_decoder_architecture or not config.multi_query
    return config.num_kv_heads if grouped else 1


def _shared_heads(config: PreTrainedConfig, kv_heads: Callable[[PreTrainedConfig], int] = _kv_heads) -> Tensor:
    """Channels of the attention output: the query heads that share a k/v head stand side by side."""
    groups, width = kv_heads(config), _head_dim(config)
    entries = torch.arange(groups * width).view(groups, 1, width)
    return entries.expand(-1, config.num_attention_heads // groups, -1).flatten()


def _interleaved_values(config: PreTrainedConfig, kv_heads: Callable[[PreTrainedConfig], int] = _kv_heads) -> Tensor:
    """Rows of v in a fused qkv that lists, for each k/v head, its query heads, then k, then v."""
    groups, width = kv_heads(config), _head_dim(config)
    slots = config.num_attention_heads // groups + 2
    return torch.arange(groups * slots * width).view(groups, slots, width)[:, -1].flatten()


def _stacked_values(config: PreTrainedConfig) -> Tensor:
    """Rows of v in a fused qkv that lists all of q, then all of k, then all of v."""
    width = _head_dim(config)
    first = (config.num_attention_heads + _kv_heads(config)) * width
    return torch.arange(first, first + _kv_heads(config) * width)


def _stacked_up(config: PreTrainedConfig) -> Tensor:
    """Rows of up in a fused gate_up that lists all of gate, then all of up."""
    return torch.arange(config.intermediate_size, 2 * config.intermediate_size)


ONE_PLUS = Kind(offset=1.0)
VALUE = Kind(channels=_shared_heads)
STACKED_VALUE = Kind(rows=_stacked_values, channels=_shared_heads)
STACKED_UP = Kind(rows=_stacked_up)
INTERLEAVED_VALUE = Kind(rows=_interleaved_values)
FALCON_VALUE = Kind(
    rows=partial(_interleaved_values, kv_heads=_falcon_kv_heads),
    channels=partial(_shared_heads, kv_heads=_falcon_kv_heads),
)


def _opt_norm_feeds_linears_only(config: PreTrainedConfig) -> bool:
    # opt-350m puts its norms after the residual sum, so their output is also the next residual.
    return config.do_layer_norm_before and config.layer_norm_elementwise_affine


def _opt_relu(config: PreTrainedConfig) -> bool:
    # relu(x / s) = relu(x) / s; galactica is an opt with gelu.
    return config.activation_function == "relu"


def _bloom_norm_feeds_linears_only(config: PreTrainedConfig) -> bool:
    return not config.apply_residual_connection_post_layernorm


def _falcon_two_norms(config: PreTrainedConfig) -> bool:
    return config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2)


def _falcon_sequential(config: PreTrainedConfig) -> bool:
    return not config.new_decoder_architecture and not config.parallel_attn


def _falcon_one_norm(config: PreTrainedConfig) -> bool:
    return not _falcon_two_norms(config) and not _falcon_sequential(config)


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
V_TO_O = Edge("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", VALUE)
UP_TO_DOWN = Edge("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj")

LLAMA = Architecture(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    blocks="model.layers",
    edges=(
        Edge("input_layernorm", QKV, "self_attn"),
        V_TO_O,
        Edge("post_attention_layernorm", GATE_UP, "mlp"),
        UP_TO_DOWN,
    ),
    unclipped=QKV[:2],
)

GEMMA = Architecture(
    model_types=("gemma",),
    blocks="model.layers",
    edges=(
        Edge("input_layernorm", QKV, "self_attn", ONE_PLUS),
        V_TO_O,
        Edge("post_attention_layernorm", GATE_UP, "mlp", ONE_PLUS),
        UP_TO_DOWN,
    ),
    unclipped=QKV[:2],
)

# post_attention_layernorm stands behind the attention here, on its way to the residual: it feeds no linear.
GEMMA_SANDWICH = Architecture(
    model_types=("gemma2", "gemma3_text"),
    blocks="model.layers",
    edges=(
        Edge("input_layernorm", QKV, "self_attn", ONE_PLUS),
        V_TO_O,
        Edge("pre_feedforward_layernorm", GATE_UP, "mlp", ONE_PLUS),
        UP_TO_DOWN,
    ),
    unclipped=QKV[:2],
)

# The language model inside the one that also sees; its blocks are gemma3_text's.
GEMMA3 = replace(GEMMA_SANDWICH, model_types=("gemma3",), blocks="model.language_model.layers")

PHI3 = Architecture(
    model_types=("phi3",),
    blocks="model.layers",
    edges=(
        Edge("input_layernorm", ("self_attn.qkv_proj",), "self_attn"),
        Edge("self_attn.qkv_proj", ("self_attn.o_proj",), "self_attn.o_proj", STACKED_VALUE),
        Edge("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp"),
        Edge("mlp.gate_up_proj", ("mlp.down_proj",), "mlp.down_proj", STACKED_UP),
    ),
    unclipped=("self_attn.qkv_proj",),
)

OPT = Architecture(
    model_types=("opt",),
    blocks="model.decoder.layers",
    edges=(
        Edge("self_attn_layer_norm", QKV, "self_attn", when=_opt_norm_feeds_linears_only),
        Edge("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj"),
        Edge("final_layer_norm", ("fc1",), "fc1", when=_opt_norm_feeds_linears_only),
        Edge("fc1", ("fc2",), "fc2", when=_opt_relu),
    ),
    unclipped=QKV[:2],
)

STARCODER2 = Architecture(
    model_types=("starcoder2",),
    blocks="model.layers",
    edges=(
        Edge("input_layernorm", QKV, "self_attn"),
        V_TO_O,
        Edge("post_attention_layernorm", ("mlp.c_fc",), "mlp"),
    ),
    unclipped=QKV[:2],
)

GPT_NEOX = Architecture(
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    edges=(
        Edge("input_layernorm", ("attention.query_key_value",), "attention"),
        Edge("attention.query_key_value", ("attention.dense",), "attention.dense", INTERLEAVED_VALUE),
        Edge("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp"),
    ),
    unclipped=("attention.query_key_value",),
)

# What falcon and bloom call the same.
FUSED_QKV, FC1 = "self_attention.query_key_value", "mlp.dense_h_to_4h"
DENSE = "self_attention.dense"

BLOOM = Architecture(
    model_types=("bloom",),
    blocks="transformer.h",
    edges=(
        Edge("input_layernorm", (FUSED_QKV,), "self_attention", when=_bloom_norm_feeds_linears_only),
        Edge(FUSED_QKV, (DENSE,), DENSE, INTERLEAVED_VALUE),
        Edge("post_attention_layernorm", (FC1,), "mlp", when=_bloom_norm_feeds_linears_only),
    ),
    unclipped=(FUSED_QKV,),
)

FALCON = Architecture(
    model_types=("falcon",),
    blocks="transformer.h",
    edges=(
        Edge("input_layernorm", (FC1, FUSED_QKV), "", when=_falcon_one_norm),
        Edge("input_layernorm", (FUSED_QKV,), "self_attention", when=_falcon_sequential),
        Edge("ln_attn", (FUSED_QKV,), "self_attention", when=_falcon_two_norms),
        Edge(FUSED_QKV, (DENSE,), DENSE, FALCON_VALUE),
        Edge("post_attention_layernorm", (FC1,), "mlp", when=_falcon_sequential),
        Edge("ln_mlp", (FC1,), "mlp", when=_falcon_two_norms),
    ),
    unclipped=(FUSED_QKV,),
)

ARCHITECTURES = (LLAMA, GEMMA, GEMMA_SANDWICH, GEMMA3, PHI3, OPT, STARCODER2, GPT_NEOX, BLOOM, FALCON)

# Known, and known not to fit: what to tell who tries.
REFUSED = {
    "mixtral": "its experts, most of its weight, are fused parameters and not linears;"
    " --awq none quantizes its attention only",
}


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The row for a model's config, holding only the edges that this config has. Raises `ModelError`."""
    model_type = config.model_type
    if model_type in REFUSED:
        raise ModelError(f"AWQ does not cover model type '{model_type}': {REFUSED[model_type]}")
    for row in ARCHITECTURES:
        if model_type in row.model_types:
            decoder = config.get_text_config()
            return replace(row, edges=tuple(edge for edge in row.edges if edge.when(decoder)))
    supported = ", ".join(sorted(name for row in ARCHITECTURES for name in row.model_types))
    raise ModelError(
        f"AWQ has no mappings for model type '{model_type}' (it has them for {supported});"
        " --awq none quantizes it by plain rounding"
    )


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of a decoder block under its full local name, in the order the block defines them."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
