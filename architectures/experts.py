"""Experts that transformers keeps in one tensor, taken apart into linears, in place, on the meta device.

`take_apart` gives a module that held `gate_up_proj` `(experts, 2 * intermediate, hidden)` and `down_proj` the children
`0.gate_proj`, `0.up_proj`, `0.down_proj`, `1.gate_proj` and so on, and a forward that runs them. From there on experts
are linears like all others: read, looked at, scaled, quantized and written one by one, under the names that loaders of
quantized checkpoints expect. What a class nobody knows computes is not guessed: it is taken apart only if a small copy
of it, with random weights, gives the same before and after.
"""

import torch
from torch import Tensor, nn

from architectures.expert_forms import FORMS, Form, Origin, copied, empty_linear


def take_apart(model: nn.Module) -> dict[str, Origin]:
    """Take apart what holds linears as other things, in place; where each new parameter comes from, by full name.

    What is not understood stays as it is.
    """
    origins: dict[str, Origin] = {}
    for name, module in list(model.named_modules()):
        if _is_conv1d(module):
            linear, parts = _linear_of_conv1d(module)
            model.set_submodule(name, linear)
        else:
            form = next((form for form in FORMS if form.fits(module)), None)
            if form is None or not _gives_the_same(form, module):
                continue
            shapes = {local: tuple(tensor.shape) for local, tensor in form.held(module).items()}
            parts = form.rebuild(module)
            module.whole_shapes = shapes
        origins |= {
            f"{name}.{local}": Origin(f"{name}.{origin.tensor}", origin.take, origin.expert, origin.part)
            for local, origin in parts.items()
        }
    return origins


def _gives_the_same(form: Form, module: nn.Module) -> bool:
    """Whether a small copy of the module gives the same output taken apart as whole."""
    generator = torch.Generator().manual_seed(0)
    try:
        whole, inputs = form.small(module, generator)
        apart = copied(whole, dict(whole._parameters), whole._modules)
        held = {name: tensor for name, tensor in form.held(whole).items()}
        with torch.no_grad():
            expected = whole(*inputs)
            for local, origin in form.rebuild(apart).items():
                owner, _, leaf = local.rpartition(".")
                value = origin.take(held[origin.tensor]).clone()
                setattr(apart.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
            found = apart(*inputs)
    except Exception:  # a class of another shape, whatever it stumbles over
        return False
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _linear_of_conv1d(module: nn.Module) -> tuple[nn.Linear, dict[str, Origin]]:
    k, n = module.weight.shape
    linear = empty_linear(n, k, True, module.weight)
    return linear, {"weight": Origin("weight", Tensor.t), "bias": Origin("bias", lambda bias: bias)}
