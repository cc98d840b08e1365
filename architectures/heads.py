"""Which rows of a producer, and which channels of a consumer, belong to the values of which attention head."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from architectures.family import Kind

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig as Config


def head_dim(config: "Config") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def kv_heads(config: "Config") -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def shared_heads(config: "Config", kv_heads: Callable[["Config"], int] = kv_heads) -> "Tensor":
    """Channels of the attention output: the query heads that share a k/v head stand side by side."""
    import torch

    groups, width = kv_heads(config), head_dim(config)
    entries = torch.arange(groups * width).view(groups, 1, width)
    return entries.expand(-1, config.num_attention_heads // groups, -1).flatten()


def interleaved_values(config: "Config", kv_heads: Callable[["Config"], int] = kv_heads) -> "Tensor":
    """Rows of v in a fused qkv that lists, for each k/v head, its query heads, then k, then v."""
    import torch

    groups, width = kv_heads(config), head_dim(config)
    slots = config.num_attention_heads // groups + 2
    return torch.arange(groups * slots * width).view(groups, slots, width)[:, -1].flatten()


def stacked_values(config: "Config") -> "Tensor":
    """Rows of v in a fused qkv that lists all of q, then all of k, then all of v."""
    import torch

    width = head_dim(config)
    first = (config.num_attention_heads + kv_heads(config)) * width
    return torch.arange(first, first + kv_heads(config) * width)


def stacked_up(config: "Config") -> "Tensor":
    """Rows of up in a fused gate_up that lists all of gate, then all of up."""
    import torch

    return torch.arange(config.intermediate_size, 2 * config.intermediate_size)


VALUE = Kind(channels=shared_heads)
STACKED_VALUE = Kind(rows=stacked_values, channels=shared_heads)
STACKED_UP = Kind(rows=stacked_up)
INTERLEAVED_VALUE = Kind(rows=interleaved_values)
