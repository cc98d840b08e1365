"""Apply scales and clips to a block, in place.

Folding along an edge multiplies the consumers' input columns by `s` (by its square where they see the square of what
the producer writes) and divides the producer's output rows by `s`, which leaves the float function as it is (AWQ, Lin
et al., arXiv 2306.00978, section 3.2). The arithmetic is float32; results are rounded once, to the parameter's own
dtype.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from architectures.family import Edge, Index
from qlinear.errors import ScalesError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def scale_length(block: nn.Module, edge: Edge, config: "Config") -> int:
    """How many entries the vector of scales of this edge has."""
    rows = _index(edge.kind.rows, config)
    return block.get_submodule(edge.prev).weight.shape[0] if rows is None else len(rows)


def consumer_scale(edge: Edge, scale: Tensor, config: "Config") -> Tensor:
    """The vector of scales spread over the consumers' input channels: `(in_features,)`."""
    channels = _index(edge.kind.channels, config)
    spread = scale if channels is None else scale[channels.to(scale.device)]
    return spread if edge.kind.power == 1 else spread.pow(edge.kind.power)


def reduce_statistic(edge: Edge, mean_abs: Tensor, config: "Config") -> Tensor:
    """The opposite way: a statistic per input channel, `(in_features,)`, averaged per entry of the vector.

    Only grouped-query attention repeats an entry: the heads that share a value head are averaged.
    """
    channels = _index(edge.kind.channels, config)
    if channels is not None:
        channels = channels.to(mean_abs.device)
        repeats = torch.bincount(channels)
        mean_abs = mean_abs.new_zeros(len(repeats)).index_add_(0, channels, mean_abs) / repeats
    return mean_abs if edge.kind.power == 1 else mean_abs.pow(1 / edge.kind.power)


@dataclass(frozen=True)
class Folder:
    """`architectures.proof.Folding`, by the functions that fold what a search has found."""

    config: "Config"

    def fold(self, block: nn.Module, edge: Edge, factors: Tensor) -> None:
        apply_scale(block, edge, factors, self.config)

    def length(self, block: nn.Module, edge: Edge) -> int:
        return scale_length(block, edge, self.config)

    def rows(self, edge: Edge) -> Tensor | slice:
        rows = _index(edge.kind.rows, self.config)
        return slice(None) if rows is None else rows

    def spread(self, edge: Edge, factors: Tensor) -> Tensor:
        return consumer_scale(edge, factors, self.config)


@torch.no_grad()
def apply_scale(block: nn.Module, edge: Edge, scale: Tensor, config: "Config") -> None:
    """Fold `scale`, float32 of `scale_length` positive entries, along `edge`.

    Raises `ScalesError`, before anything is changed, if the length is another.
    """
    expected = scale_length(block, edge, config)
    if scale.shape != (expected,):
        raise ScalesError(
            f"scales of shape {tuple(scale.shape)} for {edge.prev} -> {', '.join(edge.layers)}, which needs"
            f" ({expected},); they belong to another model"
        )
    rows = _index(edge.kind.rows, config)
    producer = block.get_submodule(edge.prev)
    scale = scale.to(producer.weight.device, torch.float32)
    _divide_rows(producer.weight, rows, scale, edge.kind.offset)
    # Gemma's norms, the only producers with an offset, have no bias; RMS norms have no such attribute at all.
    bias = getattr(producer, "bias", None)
    if bias is not None:
        _divide_rows(bias, rows, scale, offset=0.0)
    columns = consumer_scale(edge, scale, config)
    for name in edge.layers:
        weight = block.get_submodule(name).weight
        weight.mul_(columns.to(weight.device))


@torch.no_grad()
def apply_clip(linear: nn.Linear, clip_max: Tensor) -> None:
    """Clamp every group of a `(N, K)` weight to `[-clip_max, clip_max]`; `clip_max` is `(N, K / group_size, 1)`.

    Raises `ScalesError` if that shape does not fit the weight.
    """
    weight = linear.weight
    n, k = weight.shape
    groups = clip_max.shape[1] if clip_max.dim() == 3 else 0
    if groups == 0 or clip_max.shape != (n, groups, 1) or k % groups:
        raise ScalesError(
            f"clips of shape {tuple(clip_max.shape)} for a weight of shape ({n}, {k}), which needs"
            f" ({n}, {k} / group_size, 1); they belong to another model"
        )
    limit = clip_max.to(weight.device, torch.float32)
    weight.view(n, groups, -1).clamp_(-limit, limit)


def _index(of: Index | None, config: "Config") -> Tensor | None:
    return None if of is None else of(config.get_text_config())


def _divide_rows(parameter: Tensor, rows: Tensor | None, divisor: Tensor, offset: float) -> None:
    """`parameter[rows] = (parameter[rows] + offset) / divisor - offset` for a `(N, K)` weight or a `(N,)` vector."""
    divisor = divisor.view(-1, *[1] * (parameter.dim() - 1))
    if rows is None and offset == 0:  # in place: a float32 weight may be large
        parameter.div_(divisor)
        return
    index = slice(None) if rows is None else rows.to(parameter.device)
    parameter[index] = ((parameter[index].to(torch.float32) + offset) / divisor - offset).to(parameter.dtype)
