"""What is a linear layer, and what only looks like one."""

from functools import cache

import torch
from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes what `nn.Linear` does: a subclass may give something else (a router's does)."""
    if not isinstance(module, nn.Linear) or "forward" in vars(module):
        return False
    return type(module).forward is nn.Linear.forward or _multiplies(type(module))


@cache
def _multiplies(kind: type[nn.Linear]) -> bool:
    """Whether a subclass with a forward of its own (falcon's) gives what a linear gives, and nothing else."""
    plain = nn.Linear(3, 2)
    other = kind.__new__(kind)
    other.__dict__ = dict(plain.__dict__)
    x = torch.arange(6.0).view(1, 2, 3)
    try:
        with torch.no_grad():
            given, expected = other(x), plain(x)
    except Exception:  # it wants more than a weight and an input
        return False
    return isinstance(given, Tensor) and given.shape == expected.shape and torch.allclose(given, expected)


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Every linear of a decoder block under its full local name, in the order the block defines them."""
    return {name: module for name, module in block.named_modules() if is_linear(module)}
