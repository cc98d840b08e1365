"""What is to be known of one kind of decoder block before it is quantized: its linears, its edges, what stays float."""

import re
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from architectures.family import Edge
from architectures.linears import block_linears
from qlinear.sizes import GROUP_SIZES


class Found(Enum):
    """How the edges of a block came to be known; all are proven on its own weights. NONE: there are none."""

    TABLE = "table"
    PROBE = "discovered"
    NONE = "none"


@dataclass(frozen=True)
class Anatomy:
    """Names are local to the block. linears: those to be quantized, in the order the block defines them.

    edges: the rescalings that leave its function as it is; unclipped: linears that clips are not searched for;
    kept: linears that stay float, and why.
    """

    linears: tuple[str, ...]
    edges: tuple[Edge, ...] = ()
    unclipped: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    found: Found = Found.NONE

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Quantized linears that no edge scales."""
        covered = {name for edge in self.edges for name in edge.layers}
        return tuple(name for name in self.linears if name not in covered)


def by_shape(block: nn.Module) -> Anatomy:
    """What the block's modules tell without being run."""
    linears, kept = [], {}
    for name, linear in block_linears(block).items():
        reason = _router(block, name, linear) or _width(linear)
        if reason:
            kept[name] = reason
        else:
            linears.append(name)
    return Anatomy(tuple(linears), kept=kept)


# Fewer outputs than these are no projection: a gate of a shared expert, one number a head.
_FEW_OUTPUTS = 8


def _router(block: nn.Module, name: str, linear: nn.Linear) -> str | None:
    parents = name.split(".")[:-1]
    if "router" in name.split("."):
        return "a router"
    beside = block.get_submodule(".".join(parents))
    counts = {_expert_count(child) for child in beside.children()} - {None}
    if linear.out_features in counts:
        return "a router"
    return "a gate of few outputs" if linear.out_features < _FEW_OUTPUTS else None


def _expert_count(module: nn.Module) -> int | None:
    """How many experts a module holds, whether in one tensor, taken apart, or as a list of modules."""
    known = getattr(module, "expert_count", None) or getattr(module, "num_experts", None)
    if known is None and isinstance(module, nn.ModuleList) and len(module) > 1:
        known = len(module)
    return known if isinstance(known, int) else None


def _width(linear: nn.Linear) -> str | None:
    if linear.in_features % min(GROUP_SIZES):
        return f"no group size divides its {linear.in_features} inputs"
    return None


_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


def template(name: str) -> str:
    """The name with its numbers left out: the same for the linears of all experts."""
    return _NUMBER.sub("*", name)


def numbers(name: str) -> tuple[str, ...]:
    return tuple(_NUMBER.findall(name))


def filled(pattern: str, values: tuple[str, ...]) -> str:
    """A template with numbers in it."""
    left = iter(values)
    return re.sub(r"\*", lambda _: next(left), pattern)


class Siblings:
    """The names of a block's modules with those of one list, of experts most of all, told apart from other numbers."""

    def __init__(self, block: nn.Module):
        self._lists = {
            name
            for name, module in block.named_modules()
            if isinstance(module, nn.ModuleList) or getattr(module, "expert_count", 0)
        }

    def _split(self, name: str) -> tuple[str, tuple[str, ...]]:
        parts, taken = name.split("."), []
        for index, part in enumerate(parts):
            if part.isdigit() and ".".join(name.split(".")[:index]) in self._lists:
                taken.append(part)
                parts[index] = "*"
        return ".".join(parts), tuple(taken)

    def template(self, name: str) -> str:
        """The name with the places in lists left out."""
        return self._split(name)[0]

    def numbers(self, name: str) -> tuple[str, ...]:
        """Its places in lists."""
        return self._split(name)[1]
