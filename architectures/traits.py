"""What a decoder that runs a stack as a whole has to know of a family, as data: nothing here needs torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlinear.backends.stack import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


@dataclass(frozen=True)
class Multipliers:
    """residual: of what a block adds; logits: they are divided by it.

    A decoder need not know them: with a residual stream that is smaller by `residual` throughout, nothing that a block
    adds is multiplied, and its norms give the same with an epsilon smaller by the square.
    """

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


# (config, number of the layer) -> positions that it sees, itself too; None: all.
Window = Callable[["Config", int], int | None]


def sees_all(config: "Config", layer: int) -> None:
    return None


def of_config(config: "Config", layer: int) -> int | None:
    """Of every layer the same."""
    return config.sliding_window


def of_layer_type(config: "Config", layer: int) -> int | None:
    types = getattr(config, "layer_types", None)  # which older configurations do not have
    return config.sliding_window if types and types[layer] == "sliding_attention" else None


def always(config: "Config", layer: int) -> bool:
    return True


def of_head(config: "Config", head_dim: int) -> float:
    return head_dim**-0.5


def of_query_scalar(config: "Config", head_dim: int) -> float:
    """Gemma's from its second version on."""
    return config.query_pre_attn_scalar**-0.5


def of_multiplier(config: "Config", head_dim: int) -> float:
    """Granite's."""
    return config.attention_multiplier


def none(config: "Config") -> Multipliers:
    return Multipliers()


def granites(config: "Config") -> Multipliers:
    return Multipliers(config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)


def never(config: "Config") -> bool:
    return False


def always_parallel(config: "Config") -> bool:
    return True


def as_given(rope: dict, head_dim: int) -> dict:
    return rope


@dataclass(frozen=True)
class Experts:
    """Where an MLP that is a mixture of experts keeps its parts, and how its router chooses.

    correction: of the router's, what is added to scores where experts are compared (None: nothing is); shared: the MLP
    that every token goes through besides, where a model of the family has one; shared_gate: what its sigmoid weighs
    that with.
    """

    routing: Callable[["Config"], Routing]
    router: str = "gate"
    correction: str | None = None
    shared: str | None = None
    shared_gate: str | None = None


QK_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class Fused:
    """Where a block keeps its parts and which variants of the maths it uses, for decoders that run a stack as a whole.

    plain_mlp: whether the MLP has no gate, and gate_up is up alone; curve: of such a one, the tensors that its
    activation goes by (`qlinear.backends.stack.PlainMlp`).
    norms: before attention, after it, before the MLP, after it (None: there is none). layer_norm: whether they subtract
    the mean; norm_biases: whether they have biases; final_norm: of the model. norm_offset: what is added to a norm's
    weight. epsilon: the field of the config that they go by.
    parallel: whether a model's MLP reads what its attention does, and so has no norm of its own.
    head_norms: the norms of q and k (None: there are none); head_norms_if: the field of the config that says so where
    not all have; turned_first: whether they come after the rotation.
    mlp: the module that is the MLP; experts: what it is made of in blocks where it has `experts`.
    unbiased: linears that have no bias, whatever the config says of those around them.
    window: of a layer, how many positions it sees, itself too; None: all. rotates: whether a layer turns q and k.
    rope: what the config's parameters of the rotation mean, as those that the kinds of `engine.rotation` have.
    interleaved: whether the rotation turns neighbours; partial_rotation: whether it leaves some features of a head as
    they are where the config says so; rotary_per_layer_type: whether it differs between types of layers.
    multipliers: of embedding, residual and logits; scaled_embedding: whether the embedding is multiplied by the root of
    the hidden size.
    attention_scale: what scores are multiplied by, from the config and the features of a head.
    activation, attention_cap, logit_cap: the fields of the config that name the MLP's activation, and the limits of the
    attention scores and of the logits (None: there is none). without: fields of a config with which no decoder runs,
    and what they make a model do.
    """

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    o: str = "o_proj"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    plain_mlp: bool = False
    curve: tuple[str, ...] = ()
    norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
    layer_norm: bool = False
    norm_biases: bool = False
    final_norm: str = "norm"
    norm_offset: float = 0.0
    epsilon: str = "rms_norm_eps"
    parallel: Callable[["Config"], bool] = never
    head_norms: tuple[str, str] | None = None
    head_norms_if: str | None = None
    turned_first: bool = False
    unbiased: tuple[str, ...] = ()
    mlp: str = "mlp"
    experts: Experts | None = None
    activation: str = "hidden_act"
    window: Window = sees_all
    rotates: Callable[["Config", int], bool] = always
    attention_scale: Callable[["Config", int], float] = of_head
    attention_cap: str | None = None
    logit_cap: str | None = None
    without: tuple[tuple[str, str], ...] = ()
    rope: Callable[[dict, int], dict] = as_given
    rotary_per_layer_type: bool = False
    partial_rotation: bool = False
    interleaved: bool = False
    multipliers: Callable[["Config"], Multipliers] = none
    scaled_embedding: bool = False
