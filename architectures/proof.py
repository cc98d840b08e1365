"""The proof of an edge: random factors, folded into a block's weights along it, change nothing that it computes."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from architectures.expert_runs import run_expert
from architectures.family import Edge
from architectures.probe import Run, Trace, record

# Factors lie in [exp(-0.5), exp(0.5)]; what then differs by less than this share of its norm is rounding of float32.
_TOLERANCE = 1e-4


class Folding(Protocol):
    """The arithmetic of folding, which is not this room's."""

    def fold(self, block: nn.Module, edge: Edge, factors: Tensor) -> None:
        """Divide the producer and multiply the consumers, in place."""

    def length(self, block: nn.Module, edge: Edge) -> int:
        """How many factors an edge takes."""

    def rows(self, edge: Edge) -> Tensor | slice:
        """Which rows of the producer they divide."""

    def spread(self, edge: Edge, factors: Tensor) -> Tensor:
        """What the consumers' input channels are multiplied by."""


class Proof:
    """Proves edges of one block, whose weights come out as they went in up to rounding."""

    def __init__(self, block: nn.Module, trace: Trace, run: Run, folding: Folding):
        self.block, self.trace, self.run, self.folding = block, trace, run, folding
        self.generator = torch.Generator().manual_seed(0)

    def holds(self, edges: Sequence[Edge]) -> bool:
        """Whether all of them, folded at once, leave the block's function as it is."""
        vectors = [(edge, torch.empty(self.folding.length(self.block, edge))) for edge in edges]
        for _, vector in vectors:
            vector.uniform_(-0.5, 0.5, generator=self.generator).exp_()
        experts = self._experts(edges)
        alone = {name: self._alone(name, x) for name, x in experts.items()}
        for edge, vector in vectors:
            self.folding.fold(self.block, edge, vector)
        found = record(self.block, self.run)
        same = self._compare(found, self._divisors(vectors))
        for name, x in experts.items() if same else ():
            same = same and _near(self._alone(name, x / self._input_scale(name, vectors)), alone[name])
        for edge, vector in reversed(vectors):
            self.folding.fold(self.block, edge, 1 / vector)
        return same

    def _divisors(self, vectors: list[tuple[Edge, Tensor]]) -> dict[str, Tensor]:
        """What the outputs of the producers that are linears have been divided by."""
        divisors: dict[str, Tensor] = {}
        for edge, vector in vectors:
            weight = self.block.get_submodule(edge.prev).weight
            if weight.ndim == 2:
                rows = self.folding.rows(edge)
                divisor = divisors.setdefault(edge.prev, torch.ones(len(weight)))
                divisor[rows] = divisor[rows] * vector
        return divisors

    def _compare(self, found: Trace, divisors: dict[str, Tensor]) -> bool:
        if found.outputs.keys() != self.trace.outputs.keys() or not _near(found.output, self.trace.output):
            return False
        for name, before in self.trace.outputs.items():
            after = found.outputs[name]
            if len(before) != len(after):
                return False
            for one, other in zip(before, after, strict=True):
                if name in divisors and isinstance(one, Tensor):
                    one = one / divisors[name]
                if not _alike(other, one):
                    return False
        return True

    def _experts(self, edges: Sequence[Edge]) -> dict[str, Tensor]:
        """Modules whose experts the edges touch, and a token for each of them to read."""
        found = {}
        for name, module in self.block.named_modules():
            count = getattr(module, "expert_count", 0)
            first = module._modules.get("0")
            touched = any(layer.startswith(f"{name}.") for edge in edges for layer in edge.layers)
            if count and touched and hasattr(first, "up_proj"):
                found[name] = torch.randn(count, first.up_proj.in_features, generator=self.generator)
        return found

    def _alone(self, name: str, x: Tensor) -> Tensor:
        """What each expert makes of its token, whatever the router would say."""
        module = self.block.get_submodule(name)
        with torch.no_grad():
            return torch.cat([run_expert(module, module._modules[str(e)], x[e : e + 1]) for e in range(len(x))])

    def _input_scale(self, name: str, vectors: list[tuple[Edge, Tensor]]) -> Tensor | float:
        for edge, vector in vectors:
            if f"{name}.0.up_proj" in edge.layers:
                return self.folding.spread(edge, vector)
        return 1.0


def _near(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool((x - y).norm() <= _TOLERANCE * y.norm().clamp(min=1e-30))


def _alike(x, y) -> bool:
    """Of what a module gave, the floats: a router may give more than one."""
    if isinstance(x, Tensor):
        return not x.is_floating_point() or _near(x, y)
    return all(map(_alike, x, y)) if isinstance(x, tuple | list) else True
