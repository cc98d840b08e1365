"""Putting `QLinearPerGrp` layers into a model, and joining those that read the same input into one matmul."""

from torch import Tensor, nn

from qlinear.backends.base import Backend
from qlinear.layer import QLinearPerGrp


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

    def __init__(self, layers: list[QLinearPerGrp], backend: Backend):
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.joined = layers[0].prepare(backend, layers[1:])
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


def prepare(model: nn.Module, names: tuple[str, ...], backend: Backend) -> None:
    """Hand the quantized layers of these names to `backend`; several read the same input and become one matmul.

    They stay apart where they differ in bits or group size.
    """
    layers = [model.get_submodule(name) for name in names]
    if len(layers) == 1 or len({(layer.w_bit, layer.group_size, layer.in_features) for layer in layers}) > 1:
        for layer in layers:
            layer.prepare(backend)
        return
    group = LinearGroup(layers, backend)
    for index, name in enumerate(names):
        model.set_submodule(name, GroupedOutput(group, index))
