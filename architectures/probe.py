"""Which channels of a block's linears follow which rows of its norms and linears: found by running it, not by its name.

The block is run once as it is, and what every consumer (a module with a weight of two dimensions) sees and gives is
kept. In every later run a stand-in for it gives that again, whatever it sees: so nothing is multiplied any more, and a
change of one producer's output reaches its own consumers and no others. The rows of a producer are multiplied by
distinct factors; an input channel that comes out multiplied by a power of one of them, on every token, is fed by that
row and by nothing else.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Runs the block on a few tokens; what it returns is `(1, tokens, hidden)`.
Run = Callable[[], Tensor]

# Logarithms of the factors: their first, second and third powers do not overlap.
_LOWEST, _SPREAD = 0.23, 0.10
POWERS = (1, 2, 3)

# How far a channel may be from a multiple of what it was: float32, with the sums of an attention in between.
_TOLERANCE = 1e-4
# Below this share of a tensor's largest value a channel is taken for dead: rounding is most of what it holds.
_DEAD = 1e-7

# What a channel is that follows no row.
STILL, BROKEN, DEAD = -1, -2, -3


@dataclass
class Trace:
    """What the block's consumers saw and gave, by name, call after call; inputs are `(rows, in_features)`.

    called: the names of all modules that were called; frozen: the consumers that stand-ins are put in the place of;
    output: the block's.
    """

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    frozen: list[str] = field(default_factory=list)
    output: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """Of one consumer: the row of the producer that each input channel `(K,)` follows, or `STILL`, `BROKEN`, `DEAD`."""

    rows: Tensor
    power: int

    @property
    def touched(self) -> bool:
        return bool(((self.rows >= 0) | (self.rows == BROKEN)).any())


def consumers(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block with a weight of two dimensions that multiplies what they are given: linears, routers."""
    return {
        name: module
        for name, module in block.named_modules()
        if name and getattr(module._parameters.get("weight"), "ndim", 0) == 2 and not isinstance(module, nn.Embedding)
    }


def norms(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block whose one weight is a vector."""
    return {
        name: module
        for name, module in block.named_modules()
        if name and getattr(module._parameters.get("weight"), "ndim", 0) == 1 and not module._modules
    }


def record(block: nn.Module, run: Run) -> Trace:
    """Run the block as it is."""
    trace = Trace()

    def look(name: str, width: int):
        def hook(_, args, kwargs, output):
            x = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(x, Tensor) and x.shape[-1:] == (width,):
                trace.inputs.setdefault(name, []).append(x.detach().reshape(-1, width).clone())
                trace.outputs.setdefault(name, []).append(_cloned(output))

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in block.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: trace.called.add(name)))
        for name, module in consumers(block).items():
            width = module.weight.shape[1]
            hooks.enter_context(module.register_forward_hook(look(name, width), with_kwargs=True))
        trace.output = run().clone()
    trace.frozen = list(trace.inputs)
    return trace


def _cloned(output):
    if isinstance(output, Tensor):
        return output.detach().clone()
    return type(output)(_cloned(part) for part in output) if isinstance(output, tuple | list) else output


class DivergedError(Exception):
    """A run went another way than the first one: a router that nothing stands in for gave an expert other tokens."""


class _StandIn(nn.Module):
    """Gives what a linear gave, and keeps what it sees. It has no weight: code that reads one fails."""

    def __init__(self, name: str, trace: Trace, seen: dict[str, list[Tensor]], factor: Tensor | None):
        super().__init__()
        self.name, self.trace, self.seen, self.factor = name, trace, seen, factor

    def forward(self, x: Tensor, *_, **__):
        calls = self.seen.setdefault(self.name, [])
        calls.append(x.detach().reshape(-1, x.shape[-1]).clone())
        known = self.trace.inputs[self.name]
        if len(calls) > len(known) or calls[-1].shape != known[len(calls) - 1].shape:
            raise DivergedError
        output = _cloned(self.trace.outputs[self.name][len(calls) - 1])
        return output if self.factor is None else output * self.factor


@contextmanager
def stood_in(
    block: nn.Module, trace: Trace, names: Collection[str], factors: dict[str, Tensor] | None = None
) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the `with`, stand-ins for the consumers of these names; what they see, call after call.

    factors: what the outputs of some of them, or of norms, are multiplied by, `(N,)`.
    """
    seen: dict[str, list[Tensor]] = {}
    factors = factors or {}
    originals = {name: block.get_submodule(name) for name in names}
    with ExitStack() as hooks:
        for name in factors.keys() - originals.keys():

            def scale(_, __, output, factor=factors[name]):
                return output * factor

            hooks.enter_context(block.get_submodule(name).register_forward_hook(scale))
        try:
            for name in originals:
                block.set_submodule(name, _StandIn(name, trace, seen, factors.get(name)))
            with torch.no_grad():
                yield seen
        finally:
            for name, module in originals.items():
                block.set_submodule(name, module)


def read_by_others(block: nn.Module, trace: Trace, run: Run) -> set[str]:
    """The consumers of which something else than their output is used, such as their weight."""

    def runs(names: Collection[str]) -> bool:
        try:
            with stood_in(block, trace, names):
                run()
        except (AttributeError, TypeError, IndexError):
            return False
        return True

    return set() if runs(trace.inputs) else {name for name in trace.inputs if not runs([name])}


def follow(block: nn.Module, trace: Trace, run: Run, producer: str, rows: range, size: int) -> dict[str, Match]:
    """What the consumers show when `rows` of a producer's output of `size` channels are multiplied.

    A run that goes another way than the first shows no more than up to there: what is missing counts as broken.
    """
    base = math.isqrt(max(len(rows) - 1, 0)) + 1 if len(rows) > 128 else len(rows)
    digits = (1,) if base == len(rows) else (base, 1)
    found: list[dict[str, tuple[Tensor, int]]] = []
    for digit in digits:
        steps = torch.arange(len(rows)) // digit % base
        factor = torch.ones(size)
        factor[rows.start : rows.stop] = torch.exp(_LOWEST + _SPREAD * steps / base)
        with suppress(DivergedError), stood_in(block, trace, trace.frozen, {producer: factor}) as seen:
            run()
        others = [name for name in trace.frozen if name != producer]
        found.append({name: _read(trace.inputs[name], seen.get(name, []), base) for name in others})
    matches = {}
    for name in found[0]:
        parts = [each[name] for each in found]
        numbers = sum(part[0].clamp(min=0) * digit for part, digit in zip(parts, digits, strict=True))
        worst = torch.stack([part[0] for part in parts]).amin(0)
        powers = {part[1] for part in parts}
        still = torch.stack([part[0] == STILL for part in parts]).all(0)
        numbers = torch.where(worst >= 0, numbers + rows.start, torch.where(still | (worst == DEAD), worst, BROKEN))
        matches[name] = Match(numbers, powers.pop()) if len(powers) == 1 else Match(torch.full_like(numbers, BROKEN), 1)
    return matches


def _read(before: list[Tensor], after: list[Tensor], base: int) -> tuple[Tensor, int]:
    """The step of the factor that each channel follows, or why it follows none; and the power."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return torch.full((before[0].shape[-1],), BROKEN), 1
    x, y = torch.cat(before).double(), torch.cat(after).double()
    if not len(x):
        return torch.full((x.shape[1],), DEAD), 1
    energy, largest = x.square().sum(0), x.abs().amax(0)
    dead = largest <= _DEAD * max(float(largest.max()), 1e-30)
    ratio = (x * y).sum(0) / energy.clamp(min=1e-300)
    straight = (y - ratio * x).abs().amax(0) <= _TOLERANCE * largest
    logs = ratio.clamp(min=1e-30).log()
    still = straight & ((ratio - 1).abs() < _TOLERANCE * 10)
    result = torch.full_like(ratio, BROKEN, dtype=torch.int64)
    best_power = 1
    for power in POWERS:
        steps = (logs / power - _LOWEST) / _SPREAD * base
        nearest = steps.round()
        fits = straight & ~still & ((steps - nearest).abs() < 0.1) & (nearest >= 0) & (nearest < base)
        if fits.any() and (fits | still | dead).all():
            result, best_power = torch.where(fits, nearest.long(), result), power
            break
    result[still] = STILL
    result[dead] = DEAD
    return result, best_power
