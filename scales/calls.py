"""How a model calls its decoder blocks: recorded from one forward, so that each block can be run by itself."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qlinear.errors import CalibrationError
from scales.elementwise import WholeVectors


@dataclass(frozen=True)
class Call:
    """How a module was called: everything but the hidden states.

    name: of the argument that the hidden states were given as, None for the first one; rest: of a decoder block, what
    it returns behind its hidden states, None where it returns those alone; rows: the calls for each
    sample, where they differ.
    """

    args: tuple
    kwargs: dict[str, Any]
    name: str | None = None
    rest: tuple | None = None
    rows: "tuple[Call, ...]" = ()

    def at(self, sample: int) -> "Call":
        """The call for one sample."""
        return self.rows[sample] if self.rows else self

    def of(self, samples: Sequence[int]) -> "Call":
        """The same for some of the samples, numbered anew."""
        return replace(self, rows=tuple(self.rows[sample] for sample in samples)) if self.rows else self

    def __call__(self, module: nn.Module, hidden: Tensor) -> Tensor:
        """The module's hidden states, whether it returns them alone or first of several.

        Its activation functions give the same on any number of threads.
        """
        with WholeVectors():
            if self.name is not None:
                return hidden_of(module(*self.args, **{self.name: hidden}, **self.kwargs))
            return hidden_of(module(hidden, *self.args, **self.kwargs))

    def like_output(self, hidden: Tensor) -> Any:
        """Hidden states in the form in which a block of this call returns its own."""
        return hidden if self.rest is None else (hidden, *self.rest)


def hidden_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states of a call, and the rest of it."""
    if args:
        return args[0], Call(args[1:], kwargs)
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return kwargs[name], Call((), {key: value for key, value in kwargs.items() if key != name}, name)


class Done(Exception):
    """Raised where all that is to be seen has been: what follows has nothing to tell."""


def record_calls(
    model: nn.Module, blocks: Sequence[nn.Module], tokens: Tensor, shift: float = 0.0
) -> tuple[list[Tensor], list[Call]]:
    """Run the model's own forward on each row of `tokens` `(samples, seqlen)`, and its first block on the first row.

    Returns the first block's input for each row, `(1, seqlen, hidden)`, and each block's call. The first block and
    everything before it must hold weights; the others may be on the meta device: they pass their input through, in the
    form in which the first one returned its output. shift: added to what every block gives, to see whether it shows in
    a later one's call. Raises `CalibrationError` where the blocks are not called one after the other, or where more
    than hidden states goes from one to the next.
    """
    recorder = _Recorder(model, blocks, shift)
    for row in tokens:
        recorder.read(row)
    return recorder.inputs, recorder.calls()


class _Recorder:
    """rows: for each row that was read, each block's call; outputs: what the first block returned for the first row."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], shift: float):
        self.model, self.blocks, self.shift = model, blocks, shift
        self.inputs: list[Tensor] = []
        self.rows: list[dict[int, Call]] = []
        self.output: Any = None

    def read(self, row: Tensor) -> None:
        self.rows.append({})
        run = self.blocks[0].forward
        with forwards(self.blocks, [self._forward(index, run) for index in range(len(self.blocks))]), torch.no_grad():
            with suppress(Done):
                self.model(input_ids=row.unsqueeze(0), use_cache=False)
        calls = self.rows[-1]
        if list(calls) != list(range(len(self.blocks))):
            raise CalibrationError("the model does not call its blocks one after the other")

    def _forward(self, index: int, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args, **kwargs):
            hidden, call = split(args, kwargs)
            if index in self.rows[-1]:
                raise CalibrationError("the model calls a block more than once")
            self.rows[-1][index] = call
            if index == 0:
                self.inputs.append(hidden.detach())
                if self.output is None:
                    self.output = run(*args, **kwargs)
            if index == len(self.blocks) - 1:
                raise Done
            given = hidden + self.shift if self.shift else hidden
            return (given, *self.output[1:]) if isinstance(self.output, tuple | list) else given

        return forward

    def calls(self) -> list[Call]:
        """Each block's call, with those of the single rows where they differ."""
        rest = tuple(self.output[1:]) if isinstance(self.output, tuple | list) else None
        _check_chain(self.rows[0], self.output)
        found = []
        for index in range(len(self.blocks)):
            calls = [replace(row[index], rest=rest) for row in self.rows]
            same = all(alike(calls[0].args, call.args) and alike(calls[0].kwargs, call.kwargs) for call in calls[1:])
            found.append(calls[0] if same else replace(calls[0], rows=tuple(calls)))
        return found


def _check_chain(calls: dict[int, Call], output: Any) -> None:
    passed = (
        {id(part) for part in output[1:] if isinstance(part, Tensor)} if isinstance(output, tuple | list) else set()
    )
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
