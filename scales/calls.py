"""How a model calls its decoder blocks: recorded from one forward, so that each block can be run by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qlinear.errors import CalibrationError


@dataclass(frozen=True)
class Call:
    """How a module was called: everything but the hidden states.

    name: of the argument that the hidden states were given as, None for the first one; rest: of a decoder block, what
    it returns behind its hidden states, None where it returns those alone and in no tuple.
    """

    args: tuple
    kwargs: dict[str, Any]
    name: str | None = None
    rest: tuple | None = None

    def __call__(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """The module's hidden states, whether it returns them alone or first in a tuple."""
        if self.name is not None:
            return hidden_of(module(*self.args, **{self.name: hidden}, **self.kwargs))
        return hidden_of(module(hidden, *self.args, **self.kwargs))

    def like_output(self, hidden: Tensor) -> Any:
        """Hidden states in the form in which a block of this call returns its own."""
        return hidden if self.rest is None else (hidden, *self.rest)


def hidden_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states of a call, and the rest of it."""
    if args:
        return args[0], Call(args[1:], kwargs)
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return kwargs[name], Call((), {key: value for key, value in kwargs.items() if key != name}, name)


class Done(Exception):
    """Raised where all that is to be seen has been: what follows has nothing to tell."""


def record_calls(model: nn.Module, blocks: Sequence[nn.Module], tokens: Tensor) -> tuple[list[Tensor], list[Call]]:
    """Run the model's own forward on each row of `tokens` `(samples, seqlen)`, up to its first block.

    Returns the first block's input for each row, `(1, seqlen, hidden)`, and each block's call (the same for every
    row, as all have the same length). The first block, run on the first row alone, and everything before it must hold
    weights; the others may be on the meta device: they pass their input through, in the form in which the first one
    returned its output. Raises `CalibrationError` where the blocks are not called one after the other, where more than
    hidden states goes from one to the next, or where they are given something else that depends on the text.
    """
    inputs: list[Tensor] = []
    calls: dict[int, Call] = {}
    first: list[Any] = []

    def first_in(_, args, kwargs):
        hidden, call = split(args, kwargs)
        inputs.append(hidden.detach())
        if len(inputs) == 1:
            calls[0] = call
            return
        if not alike(call.args, calls[0].args) or not alike(call.kwargs, calls[0].kwargs):
            raise CalibrationError("the model gives its blocks more of the text than hidden states")
        raise Done  # the first row has shown every call

    def first_out(_, args, output):
        first.append(output)
        if len(blocks) == 1:
            raise Done

    def pass_through(index: int):
        def forward(*args, **kwargs):
            hidden, calls[index] = split(args, kwargs)
            if index == len(blocks) - 1:
                raise Done
            return (hidden, *first[0][1:]) if isinstance(first[0], tuple) else hidden  # as the first one did

        return forward

    with (
        blocks[0].register_forward_pre_hook(first_in, with_kwargs=True),
        blocks[0].register_forward_hook(first_out),
        forwards(blocks[1:], [pass_through(i) for i in range(1, len(blocks))]),
        torch.no_grad(),
    ):
        for row in tokens:
            with suppress(Done):
                model(input_ids=row.unsqueeze(0), use_cache=False)
    _check_chain(calls, len(blocks), first[0] if first else None)
    rest = first[0][1:] if isinstance(first[0], tuple) else None
    return inputs, [replace(calls[i], rest=rest) for i in range(len(blocks))]


def _check_chain(calls: dict[int, Call], count: int, output: Any) -> None:
    if len(calls) < count or list(calls) != sorted(calls):
        raise CalibrationError("the model does not call its blocks one after the other")
    passed = {id(part) for part in output[1:] if isinstance(part, Tensor)} if isinstance(output, tuple) else set()
    for call in calls.values():
        if passed & {id(value) for value in (*call.args, *call.kwargs.values())}:
            raise CalibrationError("the blocks hand each other more than hidden states")


def alike(one: Any, other: Any) -> bool:
    """Whether two calls were given the same, as far as that can be told: tensors, and what holds them."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return True


@contextmanager
def forwards(modules: Sequence[nn.Module], given: Sequence) -> Iterator[None]:
    """Inside the `with`, other forwards in the place of the modules' own."""
    for module, forward in zip(modules, given, strict=True):
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
