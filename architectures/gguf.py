"""How llama.cpp holds a family of models: facts of its converter (`conversion/*.py`) and graphs (`src/models/*.cpp`).

One object serves both ways: what is added to a tensor on its way into a file is taken off again on the way out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig as Config


@dataclass(frozen=True)
class GgufExperts:
    """Mixtures of experts in every layer; a file holds the gates of all experts of a layer as one tensor, and so on.

    count: the field of the config that says how many there are; chosen: how many of them a token goes to; width: what
    is between their two linears. normalized: whether it divides the weights of the chosen by their sum. named_width:
    whether the header has a field of its own for `width`; shared_width: the field of the config with the width of what
    every token goes through besides.
    """

    normalized: bool
    count: str = "num_experts"
    chosen: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    named_width: bool = True
    shared_width: str | None = None


@dataclass(frozen=True)
class Gguf:
    """architecture: the name in the header.

    interleaved: its rotation pairs neighbours, so rows of q and k are interleaved; norm_offset: what is added to the
    weights of norms; biases: linears of a block for which it reads one, by their last name; activation: of the MLP,
    and the field of the config that names it.
    own_head: whether it reads an output head that is not the embedding; own_head_dim: whether heads may be of another
    width than `hidden_size / num_attention_heads`; grouped_heads: whether k and v may have fewer of them than q;
    partial_rotary: whether a part of a head may stay unrotated.
    window_period: every such layer sees all positions, the others a window (None: it has no windows); unrotated_period:
    every such layer does not rotate; wide_layers: the depth at which it scales scores by `hidden_size /
    num_attention_heads` and not by the width of a head.
    ropes: the scalings of rotary positions that it computes as transformers does; swa_rope: whether layers with windows
    have a base of their own.
    experts: what its MLPs are made of, where they are mixtures.
    reads: whether files of this architecture are opened as this family.
    """

    architecture: str
    interleaved: bool = False
    norm_offset: float = 0.0
    biases: tuple[str, ...] = ()
    activation: tuple[str, str] = ("hidden_act", "silu")
    own_head: bool = True
    own_head_dim: bool = True
    grouped_heads: bool = True
    partial_rotary: bool = False
    window_period: int | None = None
    unrotated_period: int | None = None
    wide_layers: int | None = None
    ropes: tuple[str, ...] = ("linear", "yarn")
    swa_rope: bool = False
    experts: GgufExperts | None = None
    reads: bool = True

    def interleaved_heads(self, name: str, config: "Config") -> int | None:
        """Of how many heads the rows of the tensor that a file calls `name` are interleaved; None: of none."""
        if not self.interleaved:
            return None
        if ".attn_q." in name:
            return config.num_attention_heads
        return config.num_key_value_heads if ".attn_k." in name else None

    def to_module(self, name: str, stored: "Tensor", config: "Config") -> "Tensor":
        """The module's tensor of the one that a file calls `name`."""
        heads = self.interleaved_heads(name, config)
        if heads is not None:
            return undo_rotary_interleave(stored, heads)
        return stored - self.norm_offset if self._is_norm(name) else stored

    def to_file(self, name: str, tensor: "Tensor", config: "Config") -> "Tensor":
        """The tensor that a file calls `name`, of the module's; of codes, zeros and scales, too, row by row."""
        heads = self.interleaved_heads(name, config)
        if heads is not None:
            return rotary_interleave(tensor, heads)
        return tensor.float() + self.norm_offset if self._is_norm(name) else tensor

    def _is_norm(self, name: str) -> bool:
        return self.norm_offset != 0 and name.endswith("_norm.weight")


def rotary_interleave(tensor: "Tensor", heads: int) -> "Tensor":
    """Rows `(heads, 2, half)` to `(heads, half, 2)`: the two halves that a rotation pairs become neighbours.

    `LlamaModel.permute` of llama.cpp's converter; transformers' modules keep the halves apart.
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def undo_rotary_interleave(stored: "Tensor", heads: int) -> "Tensor":
    """Rows `(heads, half, 2)` back to `(heads, 2, half)`."""
    return stored.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(stored.shape)
