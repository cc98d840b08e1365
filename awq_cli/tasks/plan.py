"""What quantize is going to do to a model, settled before a weight is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from awq_cli.paths import DEFAULT_GROUP_SIZES
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import GridError, ModelError
from qlinear.grid import GROUP_SIZES, check_divides
from scales.mappings import Architecture, architecture_of, block_linears


@dataclass(frozen=True)
class Plan:
    """units: names of the modules worked on one at a time; head_group_size: None leaves the output head as it is."""

    architecture: Architecture | None
    units: tuple[str, ...]
    group_size: int
    head: str
    head_group_size: int | None


def unit_linears(model: nn.Module, unit: str) -> dict[str, nn.Linear]:
    """The linears of a unit by local name; a linear that is a unit by itself has the local name ""."""
    return block_linears(model.get_submodule(unit))


def full_name(unit: str, local: str) -> str:
    return f"{unit}.{local}" if local else unit


def make_plan(source: PretrainedModel, awq: str, group_size: int | None, head_group_size: int | None) -> Plan:
    """Raises `ModelError` for an architecture without mappings (unless `awq` is "none"), `GridError` for a size.

    group_size: None picks the largest of 128, 64, 32 that divides every layer.
    """
    head = _head_name(source.model)
    architecture, units = _units(source, awq, head)
    if not units:
        raise ModelError(f"{source.name} has no linear layer to quantize")
    widths = {
        full_name(unit, local): linear.in_features
        for unit in units
        for local, linear in unit_linears(source.model, unit).items()
    }
    if group_size is None:
        group_size = _default_group_size(widths)
    for name, in_features in widths.items():
        check_divides(in_features, group_size, name)
    if head_group_size is not None:
        check_divides(source.model.get_output_embeddings().in_features, head_group_size, head)
    return Plan(architecture, tuple(units), group_size, head, head_group_size)


def _head_name(model: nn.Module) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def _units(source: PretrainedModel, awq: str, head: str) -> tuple[Architecture | None, list[str]]:
    """The decoder blocks; where the architecture is unknown, and AWQ not asked for, every linear by itself."""
    try:
        architecture = architecture_of(source.config)
    except ModelError:
        if awq != "none":
            raise
        return None, [name for name in block_linears(source.model) if name != head]
    blocks: Sequence[nn.Module] = source.model.get_submodule(architecture.blocks)
    return architecture, [f"{architecture.blocks}.{index}" for index in range(len(blocks))]


def _default_group_size(widths: dict[str, int]) -> int:
    for size in DEFAULT_GROUP_SIZES:
        if all(in_features % size == 0 for in_features in widths.values()):
            return size
    name, in_features = next((n, k) for n, k in widths.items() if k % min(GROUP_SIZES))
    raise GridError(
        f"no group size ({', '.join(map(str, GROUP_SIZES))}) divides {name} (in_features {in_features}), so this "
        f"model cannot be quantized"
    )
