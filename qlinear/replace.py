"""Putting `QLinearPerGrp` layers into a model, those that read the same input as one matmul."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import get_ident

import torch
from torch import Tensor, nn

from qlinear.backends.base import Backend
from qlinear.layer import QLinearPerGrp
from qlinear.packing import JoinedWeight, PackedWeight


@dataclass(frozen=True)
class LinearWeight:
    """What a linear is made of: a weight `(N, K)` on the grid and a bias `(N,)`, or None."""

    weight: PackedWeight
    bias: Tensor | None = None


def replace_linears(model: nn.Module, weights: dict[str, LinearWeight], backend: Backend) -> None:
    """Replace the linears of these names, which read the same input, by one matmul on `backend`.

    They stay apart where they differ in bits or group size. Raises `ValueError` for a weight of another shape than its
    linear's.
    """
    for name, given in weights.items():
        linear = model.get_submodule(name)
        if (linear.out_features, linear.in_features) != given.weight.shape:
            n, k = given.weight.shape
            raise ValueError(f"{name} is {linear.out_features}x{linear.in_features}, its quantized form {n}x{k}")
    parts = tuple(given.weight for given in weights.values())
    if len(parts) == 1 or len({(part.bits, part.group_size, part.shape[1]) for part in parts}) > 1:
        for name, given in weights.items():
            model.set_submodule(name, QLinearPerGrp(given.weight, given.bias, backend))
        return
    joined = QLinearPerGrp(JoinedWeight(parts), _joined_bias(list(weights.values())), backend)
    group = LinearGroup(joined, [part.shape[0] for part in parts])
    for index, name in enumerate(weights):
        model.set_submodule(name, GroupedOutput(group, index))


def _joined_bias(weights: Sequence[LinearWeight]) -> Tensor | None:
    if all(given.bias is None for given in weights):
        return None
    filled = [
        torch.zeros(given.weight.shape[0], dtype=given.weight.scales.dtype) if given.bias is None else given.bias
        for given in weights
    ]
    return torch.cat(filled)


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
    """The joined layer of a group and, for each thread that calls it, the results not yet taken."""

    def __init__(self, joined: QLinearPerGrp, sizes: list[int]):
        super().__init__()
        self.joined, self.sizes = joined, sizes
        self._pending: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}  # by thread: an input, and what waits of it

    def take(self, x: Tensor, index: int) -> Tensor:
        thread = get_ident()
        seen, waiting = self._pending.get(thread, (None, {}))
        if x is not seen or index not in waiting:
            waiting = dict(enumerate(self.joined(x).split(self.sizes, dim=-1)))
            self._pending[thread] = x, waiting
        output = waiting.pop(index)
        if not waiting:
            del self._pending[thread]
        return output
