"""What is known of a family of models, as data: one `Family` a file in `families/`, found by `config.model_type`.

An edge stands in a family only where moving a positive factor per channel from the consumers back into the producer
leaves the float function as it is. So there is none through an ungated GELU, and none out of a norm whose output is
also the residual. Module names and their order are those of the `transformers` classes, and therefore of the
MIT-Han-Lab scale files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from architectures.gguf import Gguf
from architectures.traits import Fused

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig as Config

# Every function of a config in this room is given the decoder's own: `config.get_text_config()`.
Index = Callable[["Config"], "Tensor"]


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

    def block_names(self, model: "nn.Module") -> tuple[str, ...]:
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
