"""Activation functions whose bits do not depend on the number of threads.

torch cuts a large tensor into as many pieces as there are threads, wherever that falls. Within a piece it computes
whole vectors, and what is left at its end one by one, with other instructions: a sigmoid then differs in its last bit.
A code that stands near enough to a tie tips by that.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Elements that torch computes at once: two vectors of 512 bits of its narrowest type.
VECTORS = 64
# Elements that it gives one thread at least, in most functions; some count the threads alone.
PIECE = 32768

FUNCTIONS = frozenset(
    {
        nn.functional.silu,
        nn.functional.gelu,
        nn.functional.mish,
        nn.functional.elu,
        nn.functional.selu,
        nn.functional.celu,
        nn.functional.softplus,
        nn.functional.logsigmoid,
        nn.functional.sigmoid,
        nn.functional.tanh,
        torch.sigmoid,
        torch.tanh,
        torch.exp,
        Tensor.sigmoid,
        Tensor.tanh,
        Tensor.exp,
    }
)


class WholeVectors(TorchFunctionMode):
    """Inside the `with`, elementwise functions are computed in whole vectors, on any number of threads.

    What they are given is made longer by as many zeros as that takes. Gradients go the same way back.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in FUNCTIONS or kwargs.get("inplace") or not args or not _is_cut(args[0]):
            return func(*args, **kwargs)
        x, *rest = args
        extra = whole_length(x.numel(), torch.get_num_threads()) - x.numel()
        longer = nn.functional.pad(x.reshape(-1), (0, extra)) if extra else x.reshape(-1)
        return func(longer, *rest, **kwargs)[: x.numel()].view(x.shape)


def _is_cut(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "cpu" and x.is_floating_point() and x.numel() > VECTORS


@lru_cache
def whole_length(numel: int, threads: int) -> int:
    """The shortest length, from `numel` on, whose pieces are whole vectors, however many threads share it."""
    length = -(-numel // VECTORS) * VECTORS
    while any(-(-length // pieces) % VECTORS for pieces in (threads, min(threads, -(-length // PIECE)))):
        length += VECTORS
    return length
