"""What the layers of a block see on calibration text: inputs of the block, of its linears, and their statistics.

The model runs block by block. `record_calls` lets the model itself prepare what each block is called with (masks,
rotary tables); `observe_block` then runs one block on every sample, so only one block needs its weights at a time.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from qlinear.errors import CalibrationError
from scales.calls import Call, Done, forwards, hidden_of, split


def observe_head(model: nn.Module, head: nn.Linear, blocks: Sequence[nn.Module], call: Call, hidden: Sequence[Tensor]):
    """`InputStatistics` of the output head: what the model makes of the last block's outputs `(1, seqlen, hidden)`.

    What lies before and after the blocks must hold weights, the blocks need none, nor does the head. call: any block's.
    """
    statistics = InputStatistics.empty(head.in_features)
    dtype = next(parameter.dtype for parameter in model.parameters() if not parameter.is_meta)

    def stop(_, args):
        statistics.add(args[0])
        raise Done

    with head.register_forward_pre_hook(stop), torch.no_grad():
        for x in hidden:
            given = call.like_output(x.to(dtype))
            with forwards(blocks, [lambda *_, given=given, **__: given] * len(blocks)), suppress(Done):
                model(input_ids=torch.zeros(x.shape[:2], dtype=torch.int64), use_cache=False)
    statistics.complete()
    return statistics


# Columns of a Gram matrix that are added to at a time, and tokens: of more, oneDNN may make as many sums as there are
# threads and add those up, which rounds differently on another number of them.
PANEL = 256
TOKENS = 1024


class StandIn(Enum):
    """Whose inputs statistics are of, where they are not the layer's own: of all experts beside it, or nobody's."""

    LAYER = "all experts' inputs"
    NONE = "none"


@dataclass(eq=False)
class InputStatistics:
    """Of one linear's input x over all tokens: the sum of |x| `(K,)`, the Gram matrix x^T x `(K, K)`, the token count.

    float32 throughout: half precision overflows on the outlier channels that AWQ is about. The Gram matrix is
    symmetric, and only what lies on and right of its diagonal panels is summed up: `add` whatever there is, then
    `complete`.
    """

    sum_abs: Tensor
    gram: Tensor
    tokens: int = 0
    stand_in: StandIn | None = None

    @classmethod
    def empty(cls, in_features: int) -> "InputStatistics":
        return cls(torch.zeros(in_features), torch.zeros(in_features, in_features))

    def add(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        self.sum_abs += rows.abs().sum(0)
        for part in rows.split(TOKENS):
            for i in range(0, len(self.gram), PANEL):
                self.gram[i : i + PANEL, i:].addmm_(part[:, i : i + PANEL].t(), part[:, i:])
        self.tokens += rows.shape[0]

    def complete(self) -> None:
        """Mirror the Gram matrix. Raises `CalibrationError` where what was added is not finite."""
        if not (self.sum_abs.isfinite().all() and self.gram.diagonal().isfinite().all()):
            raise CalibrationError("inputs of a layer are infinite or NaN on the calibration text: is the model sound?")
        for i in range(PANEL, len(self.gram), PANEL):
            self.gram[i:, i - PANEL : i] = self.gram[i - PANEL : i, i:].t()

    def divide(self, scale: Tensor) -> None:
        """Become the statistics of x / `scale`, `(K,)`."""
        self.sum_abs /= scale
        self.gram /= scale
        self.gram /= scale.unsqueeze(1)

    @property
    def mean_abs(self) -> Tensor:
        return self.sum_abs / max(self.tokens, 1)


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
    hidden: Sequence[Tensor],
    call: Call,
    n_samples: int,
) -> Observation:
    """Run the block on every sample, gathering the statistics of its linears' inputs.

    watched: local names of the modules ("" is the block) whose calls on the first `n_samples` samples are kept.
    `hidden` may be of a lower precision than the block; outputs come back in the dtype of `hidden`.
    """
    seen = Observation()
    inputs: dict[int, tuple[Tensor, str]] = {}  # by id; the tensor is held so that its id stays its own
    dtype = next(block.parameters()).dtype
    start = time.perf_counter()
    with ExitStack() as hooks, ExitStack() as watching, torch.no_grad():
        for name, linear in linears.items():
            hook = _statistics_hook(name, seen, inputs)
            hooks.enter_context(linear.register_forward_pre_hook(hook))
        for name in watched:
            watching.enter_context(_watch(block, name, seen.samples.setdefault(name, [])))
        for index, x in enumerate(hidden):
            if index == n_samples:
                watching.close()
            inputs.clear()
            seen.outputs.append(call.at(index)(block, x.to(dtype)).to(x.dtype))
    seen.forward_seconds = time.perf_counter() - start - seen.statistics_seconds
    for statistics in set(seen.statistics.values()):
        statistics.complete()
    return seen


def observe_inputs(
    block: nn.Module, linears: dict[str, nn.Linear], hidden: Sequence[Tensor], call: Call
) -> dict[str, InputStatistics]:
    """The statistics of `observe_block` alone: no sample runs further than to the last linear that is still to come."""
    seen = Observation()
    inputs: dict[int, tuple[Tensor, str]] = {}
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
            hooks.enter_context(linear.register_forward_pre_hook(_statistics_hook(name, seen, inputs)))
            hooks.enter_context(linear.register_forward_pre_hook(stop_at_the_last(name)))
        for index, x in enumerate(hidden):
            inputs.clear()
            waiting.update(linears)
            with suppress(Done):
                call.at(index)(block, x.to(dtype))
    for statistics in set(seen.statistics.values()):
        statistics.complete()
    return seen.statistics


def run_block(block: nn.Module, hidden: Sequence[Tensor], call: Call) -> list[Tensor]:
    """The block's output for each sample, in the dtype of `hidden`, which may be lower than the block's."""
    dtype = next(block.parameters()).dtype
    with torch.no_grad():
        return [call.at(index)(block, x.to(dtype)).to(x.dtype) for index, x in enumerate(hidden)]


def _statistics_hook(name: str, seen: Observation, inputs: dict[int, tuple[Tensor, str]]):
    def hook(linear, args):
        x = args[0]
        _, owner = inputs.setdefault(id(x), (x, name))
        if owner != name:
            seen.statistics[name] = seen.statistics[owner]
            return
        start = time.perf_counter()
        if name not in seen.statistics:
            seen.statistics[name] = InputStatistics.empty(x.shape[-1])
        seen.statistics[name].add(x)
        seen.statistics_seconds += time.perf_counter() - start

    return hook


def _watch(block: nn.Module, name: str, samples: list):
    def hook(_, args, kwargs, output):
        hidden, call = split(args, kwargs)
        samples.append((hidden, call, hidden_of(output).clone()))  # falcon's block adds to its mlp's output in place

    return block.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
