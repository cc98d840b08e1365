"""What of a model stays float, and why; and what was found out of its blocks, for the record."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from architectures.anatomy import Anatomy, template
from architectures.blocks import text_decoder
from architectures.discover import Fixed
from architectures.family import Edge
from architectures.linears import is_linear
from quantization.unit import full_name


@dataclass(frozen=True)
class Kept:
    """Weights of the decoder that stay float. name: with `*` for the numbers of blocks and experts; bytes: in bfloat16.

    count: how many modules it stands for.
    """

    name: str
    reason: str
    count: int
    bytes: int


@dataclass(frozen=True)
class EdgeRecord:
    """rows: of the producer, `[first, one past the last]` of each run; empty: all of them."""

    prev: str
    layers: list[str]
    rows: list[list[int]]
    power: int


@dataclass(frozen=True)
class KindRecord:
    """What was found of one kind of block. blocks: which are of it; found: "table", "discovered" or "none";

    uncovered: quantized linears, numbers of experts as `*`, that AWQ scales along no edge.
    """

    blocks: list[str]
    found: str
    edges: list[EdgeRecord]
    uncovered: list[str]
    unclipped: list[str]


def kept_float(model: nn.Module, units: tuple[str, ...], anatomies: tuple[Anatomy, ...], head: str) -> list[Kept]:
    """Matrices of the decoder that are neither quantized nor embeddings nor the output head."""
    quantized, reasons = set(), {}
    for unit, anatomy in zip(units, anatomies, strict=True):
        quantized |= {full_name(unit, local) for local in anatomy.linears}
        reasons |= {full_name(unit, local): reason for local, reason in anatomy.kept.items()}
    decoder = text_decoder(model)
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    together: dict[tuple[str, str], list[int]] = {}
    for name, module in decoder.named_modules(prefix=prefix):
        size = sum(tensor.numel() for tensor in module._parameters.values() if tensor is not None and tensor.ndim > 1)
        if size == 0 or name in quantized or name == head or isinstance(module, nn.Embedding):
            continue
        reason = reasons.get(name) or _reason(module, name, units)
        together.setdefault((template(name), reason), []).append(size * torch.bfloat16.itemsize)
    return [Kept(name, reason, len(sizes), sum(sizes)) for (name, reason), sizes in together.items()]


def _reason(module: nn.Module, name: str, units: tuple[str, ...]) -> str:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "a convolution"
    if not is_linear(module):
        return f"no linear layer but a {type(module).__name__}"
    inside = any(name.startswith(f"{unit}.") or name == unit for unit in units)
    return "not among what is quantized" if inside else "outside the decoder blocks"


def share_kept(model: nn.Module, units: tuple[str, ...], anatomies: tuple[Anatomy, ...], kept: list[Kept]) -> float:
    """What stays float, as a share of all those weights of the decoder in bfloat16."""
    quantized = sum(
        model.get_submodule(full_name(unit, local)).weight.numel() * torch.bfloat16.itemsize
        for unit, anatomy in zip(units, anatomies, strict=True)
        for local in anatomy.linears
    )
    left = sum(entry.bytes for entry in kept)
    return left / (left + quantized) if left else 0.0


def kinds_found(units: tuple[str, ...], anatomies: tuple[Anatomy, ...]) -> list[KindRecord]:
    """One record for each kind of block, in order."""
    together: dict[int, list[str]] = {}
    found = {id(anatomy): anatomy for anatomy in anatomies}
    for unit, anatomy in zip(units, anatomies, strict=True):
        together.setdefault(id(anatomy), []).append(unit)
    return [_record(found[key], blocks) for key, blocks in together.items()]


def _record(anatomy: Anatomy, blocks: list[str]) -> KindRecord:
    edges = [EdgeRecord(edge.prev, list(edge.layers), _runs(edge), edge.kind.power) for edge in anatomy.edges]
    uncovered = list(dict.fromkeys(template(name) for name in anatomy.uncovered))
    return KindRecord(blocks, anatomy.found.value, edges, uncovered, list(anatomy.unclipped))


def _runs(edge: Edge) -> list[list[int]]:
    if not isinstance(edge.kind.rows, Fixed):
        return []
    rows: Tensor = torch.tensor(edge.kind.rows.values)
    breaks = (rows.diff() != 1).nonzero().flatten() + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in rows.tensor_split(breaks)]
