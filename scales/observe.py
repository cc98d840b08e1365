"""What the layers of a block see on calibration text: inputs of the block, of its linears, and their statistics.

The model runs block by block. `record_calls` lets the model itself prepare what each block is called with (masks,
rotary tables); `observe_block` then runs one block on every sample, so only one block needs its weights at a time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scales.calls import Call, Done, forwards, hidden_of, split
from scales.ranks import ALONE, Ranks
from scales.statistics import InputStatistics, Sums


@dataclass(frozen=True)
class Held:
    """The samples that one rank holds. hidden: `(1, seqlen, hidden)` each; count: how many all ranks have together."""

    hidden: Sequence[Tensor]
    count: int
    ranks: Ranks = ALONE

    @classmethod
    def all(cls, hidden: "Sequence[Tensor] | Held") -> "Held":
        return hidden if isinstance(hidden, Held) else cls(hidden, len(hidden))

    @property
    def tokens(self) -> int:
        """Of all ranks' samples."""
        return self.count * self.hidden[0].shape[1] if self.hidden else 0

    def turns(self) -> Iterator[Tensor | None]:
        """Each of this rank's samples, and at the end None where other ranks have one more."""
        for turn in range(self.ranks.turns(self.count)):
            yield self.hidden[turn] if turn < len(self.hidden) else None


def observe_head(
    model: nn.Module, head: nn.Linear, blocks: Sequence[nn.Module], call: Call, hidden: "Sequence[Tensor] | Held"
) -> InputStatistics:
    """Of the output head: what the model makes of the last block's outputs `(1, seqlen, hidden)`.

    What lies before and after the blocks must hold weights, the blocks need none, nor does the head. call: any block's.
    """
    held = Held.all(hidden)
    sums = Sums(held.ranks)
    dtype = next(parameter.dtype for parameter in model.parameters() if not parameter.is_meta)

    def stop(_, args):
        sums.see("", "", args[0])
        raise Done

    with head.register_forward_pre_hook(stop), torch.no_grad():
        for x in held.turns():
            if x is not None:
                given = call.like_output(x.to(dtype))
                with forwards(blocks, [lambda *_, given=given, **__: given] * len(blocks)), suppress(Done):
                    model(input_ids=torch.zeros(x.shape[:2], dtype=torch.int64), use_cache=False)
            sums.end_turn()
    return sums.complete()[""]


@dataclass
class Observation:
    """What one block showed.

    statistics: by the local name of each linear; linears that read the same tensor share one object.
    samples: by the local name of each watched module, its calls on the first samples: (hidden, call, output).
    outputs: the block's output for each sample, the next block's input.
    forward_seconds, statistics_seconds: what running the block took, and what gathering the statistics took besides.
    """

    statistics: dict[str, InputStatistics] = field(default_factory=dict)
    samples: dict[str, list[tuple[Tensor, Call, Tensor]]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    forward_seconds: float = 0.0
    statistics_seconds: float = 0.0

    def divide(self, linears: Sequence[str], scale: Tensor) -> None:
        """These linears are from now on going to see x / `scale`, `(K,)`, where they saw x."""
        for statistics in {self.statistics[name] for name in linears}:
            statistics.divide(scale)


def observe_block(
    block: nn.Module,
    linears: dict[str, nn.Linear],
    watched: Sequence[str],
    hidden: "Sequence[Tensor] | Held",
    call: Call,
    n_samples: int,
) -> Observation:
    """Run the block on every sample, gathering the statistics of its linears' inputs.

    watched: local names of the modules ("" is the block) whose calls on the first `n_samples` samples are kept, by
    every rank. `hidden` may be of a lower precision than the block; outputs come back in the dtype of `hidden`, those
    of this rank's samples. call: for all samples.
    """
    held, seen = Held.all(hidden), Observation()
    ranks, listener = held.ranks, _Listener(seen, Sums(held.ranks))
    shown = ranks.in_order(held.hidden, min(n_samples, held.count)) if ranks.size > 1 else held.hidden[:n_samples]
    dtype = next(block.parameters()).dtype
    start = time.perf_counter()
    with ExitStack() as hooks, ExitStack() as watching, torch.no_grad():
        for name, linear in linears.items():
            hooks.enter_context(linear.register_forward_pre_hook(listener.hook(name)))
        for name in watched:
            watching.enter_context(_watch(block, name, seen.samples.setdefault(name, [])))
        for index in range(held.count):
            if index == n_samples:
                watching.close()
            own = index % ranks.size == ranks.rank
            if own or index < len(shown):
                x = held.hidden[index // ranks.size] if own else shown[index]
                listener.begin(own)
                output = call.at(index)(block, x.to(dtype)).to(x.dtype)
                seen.outputs += [output] * own
            if index % ranks.size == ranks.size - 1 or index == held.count - 1:
                listener.end_turn()
    seen.forward_seconds = time.perf_counter() - start - seen.statistics_seconds
    seen.statistics = listener.sums.complete()
    return seen


def observe_inputs(
    block: nn.Module, linears: dict[str, nn.Linear], hidden: "Sequence[Tensor] | Held", call: Call
) -> dict[str, InputStatistics]:
    """The statistics of `observe_block` alone: no sample runs further than to the last linear that is still to come.

    call: for this rank's samples.
    """
    held = Held.all(hidden)
    listener = _Listener(Observation(), Sums(held.ranks))
    waiting: set[str] = set()
    dtype = next(block.parameters()).dtype

    def stop_at_the_last(name: str):
        def hook(*_):
            waiting.discard(name)
            if not waiting:
                raise Done

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, linear in linears.items():
            hooks.enter_context(linear.register_forward_pre_hook(listener.hook(name)))
            hooks.enter_context(linear.register_forward_pre_hook(stop_at_the_last(name)))
        for index, x in enumerate(held.turns()):
            if x is not None:
                listener.begin(True)
                waiting.update(linears)
                with suppress(Done):
                    call.at(index)(block, x.to(dtype))
            listener.end_turn()
    return listener.sums.complete()


def run_block(block: nn.Module, hidden: Sequence[Tensor], call: Call) -> list[Tensor]:
    """The block's output for each sample, in the dtype of `hidden`, which may be lower than the block's."""
    dtype = next(block.parameters()).dtype
    with torch.no_grad():
        return [call.at(index)(block, x.to(dtype)).to(x.dtype) for index, x in enumerate(hidden)]


class _Listener:
    """Hooks that show what linears see to the sums, and take the time that this takes."""

    def __init__(self, seen: Observation, sums: Sums):
        self.sums, self._seen = sums, seen
        self._inputs: dict[int, tuple[Tensor, str]] = {}  # by id; the tensor is held so that its id stays its own
        self._heeds = True

    def begin(self, heeds: bool) -> None:
        """Of a sample. heeds: whether it counts."""
        self._inputs.clear()
        self._heeds = heeds

    def hook(self, name: str):
        def hook(_, args):
            if not self._heeds:
                return
            x = args[0]
            _, owner = self._inputs.setdefault(id(x), (x, name))
            if owner == name:
                self._timed(lambda: self.sums.see(name, owner, x))
            else:
                self.sums.see(name, owner, x)

        return hook

    def end_turn(self) -> None:
        if self.sums.ranks.size > 1:
            self._timed(self.sums.end_turn)

    def _timed(self, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self._seen.statistics_seconds += time.perf_counter() - start


def _watch(block: nn.Module, name: str, samples: list):
    def hook(_, args, kwargs, output):
        hidden, call = split(args, kwargs)
        samples.append((hidden, call, hidden_of(output).clone()))  # falcon's block adds to its mlp's output in place

    return block.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
