"""What is known of a family of models, as data: one `Family` a file in `families/`, found by `config.model_type`.

An edge stands in a family only where moving a positive factor per channel from the consumers back into the producer
leaves the float function as it is. So there is none through an ungated GELU, and none out of a norm whose output is
also the residual. Module names and their order are those of the `transformers` classes, and therefore of the
MIT-Han-Lab scale files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from architectures.gguf import Gguf
from qlinear.backends.stack import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config

# Every function of a config in this room is given the decoder's own: `config.get_text_config()`.
Index = Callable[["Config"], Tensor]


@dataclass(frozen=True)
class Kind:
    """How a vector of scales is taken out of the producer and brought to the consumers.

    offset: what the producer adds to its weight before it multiplies (gemma's norms use `1 + weight`).
    rows: which output rows of the producer the vector divides, in the vector's order; None: all of them.
    channels: for each input channel of the consumers, its entry of the vector; None: one entry each, in order.
    power: to which what the consumers see follows the producer: 2 behind a squared ReLU.
    """

    offset: float = 0.0
    rows: Index | None = None
    channels: Index | None = None
    power: int = 1


def _always(config: "Config") -> bool:
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
    when: Callable[["Config"], bool] = _always


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


@dataclass(frozen=True)
class Fused:
    """Where a block keeps its parts and which variants of the maths it uses, for decoders that run a stack as a whole.

    norms: before attention, after it, before the MLP, after it (None: there is none).
    norm_offset: what is added to a norm's weight.
    head_norms: whether q and k have norms; head_norms_if: the field of the config that says so where not all have.
    mlp: the module that is the MLP; experts: what it is made of in blocks where it has `experts`.
    window: "config" or "attention" for where `sliding_window` is to be found, "none" where every position is seen.
    interleaved: whether the rotation turns neighbours; multipliers: whether embedding, residual and logits have
    granite's.
    activation, attention_cap, qkv_limit: the fields of the config that name the MLP's activation, the limit of the
    attention scores, and that of q, k and v, with which no decoder runs (None: there is none).
    """

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
    norm_offset: float = 0.0
    head_norms: bool = False
    head_norms_if: str | None = None
    mlp: str = "mlp"
    experts: Experts | None = None
    activation: str = "hidden_act"
    window: str = "none"
    attention_cap: str | None = None
    qkv_limit: str | None = None
    rotary_per_layer_type: bool = False
    interleaved: bool = False
    multipliers: bool = False


@dataclass(frozen=True)
class Family:
    """One row of what is known.

    blocks: where in the model the list of decoder blocks is.
    unclipped: linears whose loss passes through the product of q and k; clipping them does not pay.
    fused: None where no decoder runs the stack as a whole.
    gguf: how llama.cpp holds such a model; None where it does not, or where it is not known.
    """

    model_type: str
    blocks: str = "model.layers"
    edges: tuple[Edge, ...] = ()
    unclipped: tuple[str, ...] = ()
    fused: Fused | None = None
    gguf: Gguf | None = None

    def of(self, config: "Config") -> "Family":
        """With only the edges that a model of this config has."""
        decoder = config.get_text_config()
        return replace(self, edges=tuple(edge for edge in self.edges if edge.when(decoder)))

    def block_names(self, model: nn.Module) -> tuple[str, ...]:
        """The decoder blocks of a model of this family, by full name, in order."""
        return tuple(f"{self.blocks}.{index}" for index in range(len(model.get_submodule(self.blocks))))

    def joined_inputs(self, gate_up: bool) -> list[tuple[str, ...]]:
        """Linears that one norm feeds within one module, by local name: q, k and v; gate and up if asked."""
        return [
            edge.layers
            for edge in self.edges
            if len(edge.layers) > 1 and (gate_up or edge.layers != GATE_UP)
            if len({name.rpartition(".")[0] for name in edge.layers}) == 1
        ]


# What most families call the same.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes what `nn.Linear` does: a subclass may give something else (a router's does)."""
    if not isinstance(module, nn.Linear) or "forward" in vars(module):
        return False
    return type(module).forward is nn.Linear.forward or _multiplies(type(module))


@cache
def _multiplies(kind: type[nn.Linear]) -> bool:
    """Whether a subclass with a forward of its own (falcon's) gives what a linear gives, and nothing else."""
    plain = nn.Linear(3, 2)
    other = kind.__new__(kind)
    other.__dict__ = dict(plain.__dict__)
    x = torch.arange(6.0).view(1, 2, 3)
    try:
        with torch.no_grad():
            given, expected = other(x), plain(x)
    except Exception:  # it wants more than a weight and an input
        return False
    return isinstance(given, Tensor) and given.shape == expected.shape and torch.allclose(given, expected)


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of a decoder block under its full local name, in the order the block defines them."""
    return {name: module for name, module in block.named_modules() if is_linear(module)}
