"""What quantizing is going to do to a model, settled before a weight is read."""

from dataclasses import dataclass

from torch import nn

from architectures.family import Family, block_linears
from architectures.registry import family_for_awq, find_family
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import GridError, ModelError
from qlinear.grid import check_divides
from qlinear.progress import Watcher
from qlinear.sizes import GROUP_SIZES
from quantization.recipe import DEFAULT_GROUP_SIZES, Awq, Recipe
from quantization.unit import full_name


@dataclass(frozen=True)
class Plan:
    """units: names of the modules worked on one at a time; head: name of the output head.

    family: None where the model's is not known, and each linear is a unit by itself.
    """

    family: Family | None
    units: tuple[str, ...]
    group_size: int
    head: str


@dataclass(frozen=True)
class Job:
    """A model, what was asked for (settled), what that comes to, and who watches."""

    source: PretrainedModel
    recipe: Recipe
    plan: Plan
    watch: Watcher


def make_plan(source: PretrainedModel, recipe: Recipe) -> Plan:
    """Raises `ModelError` for a family without mappings (unless no AWQ is asked for), `GridError` for a size."""
    head = _head_name(source.model)
    family, units = _units(source, recipe, head)
    if not units:
        raise ModelError(f"{source.name} has no linear layer to quantize")
    widths = {
        full_name(unit, local): linear.in_features
        for unit in units
        for local, linear in block_linears(source.model.get_submodule(unit)).items()
    }
    group_size = recipe.group_size or _default_group_size(widths)
    for name, in_features in widths.items():
        check_divides(in_features, group_size, name)
    if recipe.lm_head:
        check_divides(source.model.get_output_embeddings().in_features, recipe.lm_head_group_size, head)
    return Plan(family, units, group_size, head)


def _head_name(model: nn.Module) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def _units(source: PretrainedModel, recipe: Recipe, head: str) -> tuple[Family | None, tuple[str, ...]]:
    """The decoder blocks; where the family is not known, and AWQ not asked for, every linear by itself."""
    family = find_family(source.config) if recipe.awq is Awq.NONE else family_for_awq(source.config)
    if family is None or not family.edges:
        return None, tuple(name for name in block_linears(source.model) if name != head)
    return family, family.block_names(source.model)


def _default_group_size(widths: dict[str, int]) -> int:
    for size in DEFAULT_GROUP_SIZES:
        if all(in_features % size == 0 for in_features in widths.values()):
            return size
    name, in_features = next((n, k) for n, k in widths.items() if k % min(GROUP_SIZES))
    raise GridError(
        f"no group size ({', '.join(map(str, GROUP_SIZES))}) divides {name} (in_features {in_features}), so this "
        f"model cannot be quantized"
    )
