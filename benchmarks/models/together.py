"""Experts and linears that a class of transformers keeps in another shape than a checkpoint has, put back into it.

A checkpoint has linears one by one, `(outputs, inputs)`. Where transformers itself does not know how to join those of a
type, they are joined here, from what its classes say of their own layout; nothing of how they were taken apart is used.
"""

import re
from collections.abc import Mapping, Set

import torch
from torch import Tensor, nn

_PART = re.compile(r"(.+)\.(\d+)\.((?:gate|up|down)_proj\.(?:weight|bias)|weight)")
# They take every expert's inputs from the left, and do not say so.
_TRANSPOSED = ("Llama4TextExperts",)

# They have room for experts that do nothing, behind the others.
_IDLE = ("LongcatFlashExperts",)


@torch.no_grad()
def put_together(model: nn.Module, tensors: Mapping[str, Tensor], linears: Set[str]) -> tuple[set[str], set[str]]:
    """Fill the parameters of `model` that it keeps in another shape than `tensors` has them; names of these, and of
    the tensors that they are made of. linears: names of the quantized weights.

    Raises `KeyError` for a tensor that is missing, `ValueError` for one of another shape.
    """
    filled, used = set(), set()
    parts: dict[str, dict[str, dict[int, str]]] = {}
    for name in tensors:
        match = _PART.fullmatch(name)
        if match:
            parts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = name
    for path, module in model.named_modules():
        if type(module).__name__ == "Conv1D" and f"{path}.weight" in linears:
            made, names = {"weight": tensors[f"{path}.weight"].t()}, [f"{path}.weight"]
        elif path in parts and _whole(module):
            stacked = {leaf: torch.stack([tensors[of[i]] for i in range(len(of))]) for leaf, of in parts[path].items()}
            made, names = _joined(module, stacked), [name for of in parts[path].values() for name in of.values()]
        else:
            continue
        for leaf, value in made.items():
            parameter = module.get_parameter(leaf)
            if type(module).__name__ in _IDLE:
                parameter = parameter[: len(value)]
            if parameter.shape != value.shape:
                raise ValueError(f"{path}.{leaf} is {tuple(value.shape)} and not {tuple(parameter.shape)}")
            parameter.copy_(value.clone())  # loading may have taken the tensor itself
        filled |= {f"{path}.{leaf}" for leaf in made}
        used |= set(names)
    return filled, used


def _whole(module: nn.Module) -> bool:
    """Whether the module holds all of its experts in one tensor."""
    return type(module).__name__ == "DbrxExperts" or any(tensor.ndim == 3 for tensor in module._parameters.values())


def _joined(module: nn.Module, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's parameters, of its experts' `(experts, outputs, inputs)` or, of biases, `(experts, outputs)`."""
    if set(stacked) == {"weight"}:
        return dict(stacked)
    if type(module).__name__ == "DbrxExperts":
        gate, up, down = (stacked[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
        return {"mlp.w1": gate.flatten(0, 1), "mlp.v1": up.flatten(0, 1), "mlp.w2": down.mT.flatten(0, 1)}
    transposed = getattr(module, "is_transposed", type(module).__name__ in _TRANSPOSED)
    in_turns = not getattr(module, "is_concatenated", True)
    made = {}
    for kind, suffix in (("weight", ""), ("bias", "_bias")):
        if f"down_proj.{kind}" not in stacked:
            continue
        first, up, down = "up_proj", stacked[f"up_proj.{kind}"], stacked[f"down_proj.{kind}"]
        if f"gate_proj.{kind}" in stacked:
            first, pair = "gate_up_proj", (stacked[f"gate_proj.{kind}"], up)
            up = torch.stack(pair, 2).flatten(1, 2) if in_turns else torch.cat(pair, 1)
        turned = transposed and kind == "weight"
        made |= {f"{first}{suffix}": up.mT if turned else up, f"down_proj{suffix}": down.mT if turned else down}
    return made
