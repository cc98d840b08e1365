"""Putting `QLinearPerGrp` layers into a model, and joining those that read the same input into one matmul."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from qlinear.backends.base import Backend
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight


def replace_linear(model: nn.Module, name: str, layer: QLinearPerGrp) -> None:
    """Put `layer` where `model` has the linear called `name`; raises `ValueError` if the shapes differ."""
    linear = model.get_submodule(name)
    if (linear.in_features, linear.out_features) != (layer.in_features, layer.out_features):
        raise ValueError(
            f"{name} is {linear.out_features}x{linear.in_features}, its quantized form "
            f"{layer.out_features}x{layer.in_features}"
        )
    model.set_submodule(name, layer)


def quantized_layers(model: nn.Module) -> dict[str, QLinearPerGrp]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QLinearPerGrp)}


def prepare(model: nn.Module, backend: Backend) -> None:
    """Hand every quantized layer to `backend`, one after the other."""
    for layer in quantized_layers(model).values():
        layer.prepare(backend)


class GroupedOutput(nn.Module):
    """One member of a group of linears that read the same input (q, k and v; gate and up).

    The first member to see an input runs the joined matmul; the others take their columns of the same result.
    Results are kept only until every member has taken its own.
    """

    def __init__(self, group: "LinearGroup", index: int):
        super().__init__()
        self._group = [group]  # in a list: the group is registered once, on its first member
        if index == 0:
            self.group = group
        self.index = index
        self.in_features = group.joined.in_features
        self.out_features = group.sizes[index]

    def forward(self, x: Tensor) -> Tensor:
        return self._group[0].take(x, self.index)


class LinearGroup(nn.Module):
    """The joined layer of a group and the results not yet taken."""

    def __init__(self, layers: list[QLinearPerGrp]):
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.joined = QLinearPerGrp(PackedWeight.concat([layer.packed() for layer in layers]), _joined_bias(layers))
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def take(self, x: Tensor, index: int) -> Tensor:
        if x is not self._input or index not in self._waiting:
            self._waiting = dict(enumerate(self.joined(x).split(self.sizes, dim=-1)))
            self._input = x
        output = self._waiting.pop(index)
        if not self._waiting:
            self._input = None
        return output


def _joined_bias(layers: list[QLinearPerGrp]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    filled = [
        torch.zeros(layer.out_features, dtype=layer.weight_scale.dtype) if layer.bias is None else layer.bias
        for layer in layers
    ]
    return torch.cat(filled)


def join_groups(model: nn.Module, groups: Iterable[tuple[str, ...]]) -> int:
    """Join each group of unprepared quantized layers, given by name; returns how many groups were joined.

    A group is left alone unless all its members are quantized with the same bits and group size.
    """
    joined = 0
    for names in groups:
        layers = [model.get_submodule(name) for name in names]
        if not all(isinstance(layer, QLinearPerGrp) for layer in layers):
            continue
        if len({(layer.w_bit, layer.group_size, layer.in_features) for layer in layers}) > 1:
            continue
        group = LinearGroup(layers)
        for index, name in enumerate(names):
            model.set_submodule(name, GroupedOutput(group, index))
        joined += 1
    return joined
