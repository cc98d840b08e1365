"""The weights of a model of `transformers`, as `engine.stack.describe` asks for them."""

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor, nn

from qlinear.backends.stack import Dense, GatedMlp, Matrix, Packed, Projection, Unsupported
from qlinear.layer import QLinearPerGrp
from qlinear.replace import GroupedOutput


def has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


class ModuleParts:
    """`engine.stack.Parts`; the model keeps its weights, which are read in place."""

    def __init__(self, model: nn.Module):
        """Raises `Unsupported` for a model with code of its own, which may do anything under a known name."""
        if type(model).__module__.partition(".")[0] == "transformers_modules":
            raise Unsupported("the model brings code of its own, which runs as it is")
        self.model = model
        self._device = model.get_input_embeddings().weight.device

    def has(self, name: str) -> bool:
        return has_module(self.model, name)

    def linears(self, names: Sequence[str]) -> Projection:
        """A joined group, or up to three layers of one kind."""
        modules = [self.model.get_submodule(name) for name in names]
        if all(isinstance(module, GroupedOutput) for module in modules):
            modules = [modules[0].group.joined]
        return [_matrix(module) for module in modules]

    def dense(self, name: str) -> Tensor:
        module = self.model.get_submodule(name)
        if not isinstance(getattr(module, "weight", None), Tensor):
            raise Unsupported(f"the fused decoder does not know {type(module).__name__} layers")
        return module.weight.detach()

    def vector(self, name: str) -> Tensor:
        found = attrgetter(name)(self.model)
        tensor = found.weight if isinstance(found, nn.Module) else found
        return tensor.detach().float().flatten()

    def head(self) -> Projection:
        return self.linears(["lm_head"])

    def outputs(self) -> int:
        return self.model.lm_head.out_features

    def experts(self, name: str, gate_up: Sequence[str]) -> list[GatedMlp]:
        """Taken apart into linears, or as transformers keeps them: `(experts, N, K)` in one tensor."""
        experts = self.model.get_submodule(name)
        apart = [f"{name}.{child}" for child, _ in experts.named_children() if child.isdigit()]
        if apart:
            return [
                GatedMlp(self.linears([f"{one}.{part}" for part in gate_up]), self.linears([f"{one}.down_proj"]))
                for one in apart
            ]
        tensors = zip(experts.gate_up_proj.detach(), experts.down_proj.detach(), strict=True)
        return [GatedMlp([Dense(gate_up, None)], [Dense(down, None)]) for gate_up, down in tensors]

    def numbers(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _matrix(module: nn.Module) -> Matrix:
    if isinstance(module, QLinearPerGrp):
        return Packed(module.prepared)
    if not isinstance(module, nn.Linear):
        raise Unsupported(f"the fused decoder does not know {type(module).__name__} layers")
    return Dense(module.weight.detach(), None if module.bias is None else module.bias.detach())
