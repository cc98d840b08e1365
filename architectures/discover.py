"""Find the edges of a decoder block by running it, and prove them.

What `architectures.probe` sees (a linear's input channels follow a producer's rows, to some power) is only proposed
here. An edge stands when random factors, folded into the block's real weights along it, change nothing that the block
computes. Experts that no token reached are taken to be like their siblings, and proven by being run by themselves.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from architectures.anatomy import Anatomy, Found, Siblings, filled
from architectures.family import Edge, Kind
from architectures.probe import (
    DEAD,
    STILL,
    DivergedError,
    Match,
    Run,
    Trace,
    follow,
    norms,
    read_by_others,
    record,
    stood_in,
)
from architectures.proof import Folding, Proof

# Rows of a producer that are multiplied by themselves, where multiplying all of them shows nothing: those of a head.
_HEAD = 128
# Chunks of a producer that are tried at most.
_MOST_CHUNKS = 2048


@dataclass(frozen=True)
class Fixed:
    """An index of rows or channels that was found out; as a `Kind` wants it, the same whatever the config."""

    values: tuple[int, ...]

    def __call__(self, config) -> Tensor:
        return torch.tensor(self.values)


def runnable(block: nn.Module, run: Run, known: Anatomy) -> Anatomy:
    """Which of a block's linears can be replaced, by running it on a few tokens; no edges."""
    trace = record(block, run)
    return _runnable(block, run, replace(known, edges=(), unclipped=()), trace)


def examine(block: nn.Module, run: Run, known: Anatomy, folding: Folding, head_dim: int) -> Anatomy:
    """What is true of a block, run by `run` on a few tokens and holding its real weights in float32.

    known: what is assumed of it: its linears by shape, and the edges of its family, which are then proven, where it has
    any. The weights are changed by rounding at most. head_dim: of its attention, 0 where nobody knows.
    """
    trace = record(block, run)
    found = _runnable(block, run, known, trace)
    proof = Proof(block, trace, run, folding)
    if known.edges:
        held = tuple(edge for edge in known.edges if set(edge.layers) & set(found.linears))
        if proof.holds(held):
            return replace(found, edges=held, found=Found.TABLE)
    edges = _Search(block, run, trace, found.linears, proof, head_dim).edges()
    unclipped = _unclipped(block, run, trace, edges, found.linears)
    return replace(found, edges=edges, unclipped=unclipped, found=Found.PROBE if edges else Found.NONE)


def _runnable(block: nn.Module, run: Run, known: Anatomy, trace: Trace) -> Anatomy:
    """Without linears that are not called, or whose weights other code reads; of those, stand-ins are kept out too."""
    read = read_by_others(block, trace, run)
    trace.frozen = [name for name in trace.frozen if name not in read]
    names = Siblings(block)
    called = {names.template(name) for name in trace.inputs}
    kept = dict(known.kept)
    for name in known.linears:
        if name in read:
            kept[name] = "other code reads its weight"
        elif names.template(name) not in called:
            kept[name] = "the block does not call it"
    return replace(known, linears=tuple(name for name in known.linears if name not in kept), kept=kept)


class _Search:
    def __init__(self, block: nn.Module, run: Run, trace: Trace, linears: tuple[str, ...], proof: Proof, head_dim: int):
        self.block, self.run, self.trace, self.linears = block, run, trace, linears
        self.proof, self.head_dim, self.names = proof, head_dim, Siblings(block)
        self.order = {name: index for index, name in enumerate(dict(block.named_modules()))}

    def edges(self) -> tuple[Edge, ...]:
        """Norms first, then linears, in the order of the block; of several producers of one consumer the first."""
        accepted: list[Edge] = []
        for proposed in self._proposals():
            taken = {name for edge in accepted for name in edge.layers}
            if any(taken & set(edge.layers) for edge in proposed):
                continue
            accepted += self._proven(proposed)
        return tuple(accepted)

    def _proven(self, proposed: list[Edge]) -> list[Edge]:
        """The edges of a producer and its siblings, which stand or fall together."""
        for offset in (0.0, 1.0) if self._is_norm(proposed[0].prev) else (0.0,):
            tried = [replace(edge, kind=replace(edge.kind, offset=offset)) for edge in proposed]
            if self.proof.holds(tried):
                return tried
        return []

    def _is_norm(self, name: str) -> bool:
        return self.block.get_submodule(name).weight.ndim == 1

    def _proposals(self) -> Iterable[list[Edge]]:
        for name, norm in norms(self.block).items():
            size = len(norm.weight)
            yield from self._propose(name, size, [range(size)])
        shown: set[str] = set()
        for name in self.linears:
            if name not in self.trace.inputs or self.names.template(name) in shown:
                continue
            shown.add(self.names.template(name))
            size = self.block.get_submodule(name).out_features
            whole = list(self._propose(name, size, [range(size)]))
            yield from whole or self._propose(name, size, self._chunks(size))

    def _chunks(self, size: int) -> list[range]:
        step = math.gcd(size, self.head_dim or _HEAD)
        while size // step > _MOST_CHUNKS:
            step *= 2
        return [range(start, min(start + step, size)) for start in range(0, size, step)] if step < size else []

    def _propose(self, producer: str, size: int, chunks: list[range]) -> Iterable[list[Edge]]:
        channels: dict[str, Tensor] = {}
        powers: set[int] = set()
        for rows in chunks:
            matches = follow(self.block, self.trace, self.run, producer, rows, size)
            touched = {name: match for name, match in matches.items() if match.touched}
            if not touched or not all(_clean(match) for match in touched.values()):
                continue
            if any((_held(channels, name, match) >= 0)[match.rows >= 0].any() for name, match in touched.items()):
                continue  # another way to scale what is scaled already
            for name, match in touched.items():
                channels[name] = torch.where(match.rows >= 0, match.rows, _held(channels, name, match))
                powers.add(match.power)
        edge = self._edge(producer, size, channels, powers)
        if edge is not None:
            yield self._siblings(edge)

    def _edge(self, producer: str, size: int, channels: dict[str, Tensor], powers: set[int]) -> Edge | None:
        complete = {name: _completed(rows) for name, rows in channels.items()}
        if not complete or len(powers) > 1 or any(rows is None for rows in complete.values()):
            return None
        if not set(complete) & set(self.linears):
            return None
        first, *others = complete.values()
        if any(not torch.equal(first, other) for other in others):
            return None
        rows, entries = first.unique(return_inverse=True)
        whole = len(rows) == size and torch.equal(rows, torch.arange(size))
        straight = torch.equal(entries, torch.arange(len(entries)))
        kind = Kind(
            rows=None if whole else Fixed(tuple(rows.tolist())),
            channels=None if straight else Fixed(tuple(entries.tolist())),
            power=powers.pop(),
        )
        layers = tuple(sorted(complete, key=self.order.__getitem__))
        return Edge(producer, layers, "", kind)

    def _siblings(self, edge: Edge) -> list[Edge]:
        """The edge, and the same of the experts beside the one that was looked at."""
        names = [*self.trace.inputs, *self.linears]
        own = self.names.numbers(edge.prev)
        if own:
            every = [name for name in self.order if self.names.template(name) == self.names.template(edge.prev)]
            return [
                self._inspected(edge, name, self._moved(edge.layers, own, self.names.numbers(name))) for name in every
            ]
        alike = {self.names.template(name) for name in edge.layers}
        layers = tuple(
            sorted({name for name in names if self.names.template(name) in alike}, key=self.order.__getitem__)
        )
        return [self._inspected(edge, edge.prev, layers)]

    def _moved(self, layers: tuple[str, ...], own: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            filled(self.names.template(name), other) if self.names.numbers(name) == own else name for name in layers
        )

    def _inspected(self, edge: Edge, prev: str, layers: tuple[str, ...]) -> Edge:
        """With the module whose output the search compares: one linear's own, or the least that holds all of them."""
        if len(layers) == 1 and not self._is_norm(prev):
            return replace(edge, prev=prev, layers=layers, inspect=layers[0])
        parts = [name.split(".")[:-1] for name in layers]
        shared = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
        common = parts[0][: len(shared)] if all(part[: len(shared)] == shared for part in parts) else []
        while common and ".".join(common) not in self.trace.called:
            common.pop()
        inspect = ".".join(common) or (layers[0] if len(layers) == 1 else "")
        return replace(edge, prev=prev, layers=layers, inspect=inspect)


def _held(channels: dict[str, Tensor], name: str, match: Match) -> Tensor:
    """What is known so far of the rows that a consumer's channels follow."""
    if name in channels:
        return channels[name]
    return torch.where(match.rows == DEAD, DEAD, STILL)


def _clean(match: Match) -> bool:
    """Whether every channel follows a row, or stays as it is."""
    return bool(((match.rows >= STILL) | (match.rows == DEAD)).all())


def _completed(rows: Tensor) -> Tensor | None:
    """With channels that were dead on these tokens as their neighbours suggest; None where some follow no row."""
    alive = (rows >= 0).nonzero().flatten()
    if len(alive) == len(rows):
        return rows
    if not len(alive) or (rows == STILL).any():
        return None
    nearest = alive[(torch.arange(len(rows)).unsqueeze(1) - alive).abs().argmin(1)]
    return rows[nearest] + torch.arange(len(rows)) - nearest


def _unclipped(
    block: nn.Module, run: Run, trace: Trace, edges: tuple[Edge, ...], linears: tuple[str, ...]
) -> tuple[str, ...]:
    """The linears whose output only counts through a product with another's: two signs that cancel change nothing.

    That is so of q and k, by themselves or as the rows of one linear that are not v's.
    """

    def same(factors: dict[str, Tensor]) -> bool:
        with suppress(DivergedError), stood_in(block, trace, trace.frozen, factors) as seen:
            run()
        return all(
            len(before) == len(seen.get(name, ())) and all(map(_close, seen[name], before))
            for name, before in trace.inputs.items()
            if name in trace.frozen
        )

    def minus(name: str) -> Tensor:
        return -torch.ones(block.get_submodule(name).out_features)

    found, names = set(), Siblings(block)
    for given in _reading_the_same(trace, [name for name in linears if not names.numbers(name)]):
        for i, one in enumerate(given):
            for other in given[i + 1 :]:
                if same({one: minus(one), other: minus(other)}) and not same({one: minus(one)}):
                    found |= {one, other}
    for edge in edges:
        rows = edge.kind.rows
        if isinstance(rows, Fixed) and not names.numbers(edge.prev):
            signs = minus(edge.prev)
            signs[list(rows.values)] = 1
            if (signs < 0).any() and same({edge.prev: signs}):
                found.add(edge.prev)
    return tuple(name for name in linears if name in found)


def _reading_the_same(trace: Trace, linears: list[str]) -> list[list[str]]:
    """Those of the linears together that see one input."""
    together: list[list[str]] = []
    for name in linears:
        if name not in trace.inputs:
            continue
        x = trace.inputs[name][0]
        beside = next((group for group in together if torch.equal(trace.inputs[group[0]][0], x)), None)
        if beside is None:
            together.append([name])
        else:
            beside.append(name)
    return together


def _close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool((x - y).norm() <= 1e-4 * y.norm().clamp(min=1e-30))
