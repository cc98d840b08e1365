"""What quantizing is going to do to a model, settled before the first block."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from architectures.anatomy import Anatomy, by_shape
from architectures.blocks import find_blocks, text_decoder
from architectures.family import Family
from architectures.linears import block_linears
from architectures.registry import find_family
from checkpoints.formats.in_bytes import BITS as BITS_IN_BYTES
from checkpoints.formats.in_bytes import group_size_for
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import GridError, ModelError
from qlinear.grid import Grid, check_divides
from qlinear.progress import Note, Watcher
from qlinear.sizes import BITS, GROUP_SIZES
from quantization.examine import BlocksError, examined
from quantization.kept import Kept, kept_float, share_kept
from quantization.recipe import DEFAULT_GROUP_SIZES, Awq, Recipe
from quantization.unit import full_name
from scales.ranks import ALONE, Ranks

# More than this share of the decoder's weights left float is told at once.
MUCH_KEPT = 0.1


@dataclass(frozen=True)
class Plan:
    """units: names of the modules worked on one at a time; anatomies: what is known of each; head: of the output head.

    blocks: whether the units are decoder blocks; else each is a linear by itself.
    """

    units: tuple[str, ...]
    anatomies: tuple[Anatomy, ...]
    blocks: bool
    group_size: int
    head: str


@dataclass(frozen=True)
class Job:
    """A model, what was asked for (settled), what that comes to, and who watches.

    kept: what of the decoder stays float; kept_share: of its weights; ranks: who does it; grids: of each linear by full
    name where they differ, once they are chosen.
    """

    source: PretrainedModel
    recipe: Recipe
    plan: Plan
    watch: Watcher
    kept: tuple[Kept, ...] = ()
    kept_share: float = 0.0
    ranks: Ranks = ALONE
    grids: Mapping[str, Grid] = field(default_factory=dict)

    def grid_of(self, name: str) -> Grid:
        """name: of a linear, the output head's too."""
        return self.grids.get(name, self.head_grid if name == self.plan.head else self.grid)

    @property
    def grid(self) -> Grid:
        """Of the linears in the units, where they are all on one."""
        return Grid(self.recipe.w_bit, self.plan.group_size, self.recipe.symmetric)

    @property
    def coarsest(self) -> Grid:
        """The fewest bits and the largest groups that any linear has, or may come to have."""
        if self.recipe.mixed and not self.grids:
            return replace(self.grid, bits=min(BITS))
        grids = list(self.grids.values()) or [self.grid]
        return replace(self.grid, bits=min(g.bits for g in grids), group_size=max(g.group_size for g in grids))

    @property
    def head_grid(self) -> Grid:
        """Of the output head, if it is quantized."""
        return replace(self.grid, group_size=self.recipe.lm_head_group_size or self.plan.group_size)

    @cached_property
    def in_bytes(self) -> str | None:
        """The embedding's weight, where that is to be stored in 8 bits, by the first name that is written."""
        if self.recipe.embedding_bits != BITS_IN_BYTES:
            return None
        weight = self.source.model.get_input_embeddings().weight
        gone = f"{self.plan.head}.weight" if self.recipe.lm_head else None
        tensors = self.source.model.state_dict(keep_vars=True).items()
        return next(name for name, tensor in tensors if tensor is weight and name != gone)

    @property
    def byte_group_size(self) -> int:
        return group_size_for(self.source.model.get_input_embeddings().weight.shape[1])


def make_plan(source: PretrainedModel, recipe: Recipe) -> Plan:
    """What the model's modules and shapes tell, before a weight is read.

    Raises `GridError` for a group size that does not divide, `ModelError` where AWQ or a solver that reads text is
    asked for and there are no blocks to be found.
    """
    head = _head_name(source.model)
    if recipe.embedding_bits == BITS_IN_BYTES:
        _check_embedding(source.model)
    units = find_blocks(source.model)
    if not units:
        return _without_blocks(source, recipe, head, f"no list of decoder blocks is to be found in {source.name}")
    anatomies = _by_shape(source, units)
    return Plan(units, anatomies, True, _group_size(source.model, recipe, units, anatomies, head), head)


def make_job(source: PretrainedModel, recipe: Recipe, watch: Watcher) -> Job:
    """What is going to be done, as far as is known before a weight is read. Raises as `make_plan` does."""
    plan = make_plan(source, recipe)
    if recipe.group_size is None and not recipe.mixed:
        sizes = ", ".join(map(str, DEFAULT_GROUP_SIZES))
        watch(Note(f"group size {plan.group_size}: the largest of {sizes} that divides every layer"))
    return Job(source, recipe, plan, watch)


def examine_job(job: Job) -> Job:
    """The same after a look at one block of each kind, with its weights.

    Raises `ModelError` where the model cannot run on quantized layers, or where its blocks cannot be run one by one
    though that is asked for.
    """
    source, recipe, plan = job.source, job.recipe, job.plan
    scaled = recipe.awq is not Awq.NONE
    if plan.blocks:
        try:
            plan = replace(plan, anatomies=examined(source, plan.units, plan.anatomies, scaled))
        except BlocksError as error:
            plan = _without_blocks(source, recipe, plan.head, str(error))
    if scaled and not any(anatomy.edges for anatomy in plan.anatomies):
        recipe = _without_awq(source, recipe, job.watch)
    kept = kept_float(source.model, plan.units, plan.anatomies, plan.head)
    share = share_kept(source.model, plan.units, plan.anatomies, kept)
    if share > MUCH_KEPT:
        worst = sorted(kept, key=lambda entry: -entry.bytes)[:3]
        told = ", ".join(f"{entry.name} ({entry.reason})" for entry in worst)
        job.watch(Note(f"{share:.0%} of the decoder's weights stay in bfloat16: {told}"))
    return replace(job, recipe=recipe, plan=plan, kept=tuple(kept), kept_share=share)


def _without_blocks(source: PretrainedModel, recipe: Recipe, head: str, reason: str) -> Plan:
    """Every linear by itself: all that can be done where the blocks are not to be found or run."""
    if recipe.awq is not Awq.NONE or recipe.method.reads_text(False) or recipe.distill or recipe.mixed:
        one = " and one `w_bit`" * recipe.mixed
        raise ModelError(f"{reason}; `awq=none` with `solver=rtn`{one} rounds without running them")
    units, anatomies = _linears(source.model, head)
    return Plan(units, anatomies, False, _group_size(source.model, recipe, units, anatomies, head), head)


def _without_awq(source: PretrainedModel, recipe: Recipe, watch: Watcher) -> Recipe:
    reason = f"AWQ finds nothing to scale in {source.name}: none of its layers can be rescaled without changing it"
    if recipe.awq is not Awq.AUTO:
        raise ModelError(f"{reason}; use `awq=none` with `solver=gptq`")
    watch(Note(f"{reason}; going on with `awq=none` and `solver={recipe.solver}`"))
    return replace(recipe, awq=Awq.NONE)


def _head_name(model: nn.Module) -> str:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "")


def _by_shape(source: PretrainedModel, units: tuple[str, ...]) -> tuple[Anatomy, ...]:
    """With the edges of the family, where it is known."""
    family = _family(source)
    found = (by_shape(source.model.get_submodule(unit)) for unit in units)
    if family is None:
        return tuple(found)
    return tuple(replace(anatomy, edges=family.edges, unclipped=family.unclipped) for anatomy in found)


def _family(source: PretrainedModel) -> Family | None:
    """The family whose edges are known; one that only says how its stack is run is looked at as any other model."""
    family = find_family(source.config) or find_family(source.config.get_text_config())
    return family if family is not None and family.edges else None


def _linears(model: nn.Module, head: str) -> tuple[tuple[str, ...], tuple[Anatomy, ...]]:
    """Every linear of the decoder by itself."""
    decoder = text_decoder(model)
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    known = by_shape(decoder)
    units = tuple(name for name in (full_name(prefix, local) for local in known.linears) if name != head)
    return units, tuple(Anatomy(("",)) for _ in units)


def _group_size(
    model: nn.Module, recipe: Recipe, units: tuple[str, ...], anatomies: tuple[Anatomy, ...], head: str
) -> int:
    """That of the recipe, or the largest that divides every layer."""
    widths = {}
    for unit, anatomy in zip(units, anatomies, strict=True):
        linears = block_linears(model.get_submodule(unit))
        widths |= {full_name(unit, local): linears[local].in_features for local in anatomy.linears}
    if not widths:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise GridError(f"there is no linear layer whose inputs a group size ({sizes}) divides, so nothing to quantize")
    group_size = recipe.group_size or next(
        size for size in DEFAULT_GROUP_SIZES if all(in_features % size == 0 for in_features in widths.values())
    )
    for name, in_features in widths.items():
        check_divides(in_features, group_size, name)
    if recipe.lm_head:
        _check_head(model, head, recipe.lm_head_group_size or group_size)
    return group_size


def _check_embedding(model: nn.Module) -> None:
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if weight is None or weight.ndim != 2:
        raise ModelError(f"`embedding_bits={BITS_IN_BYTES}`: the model has no embedding that is a matrix; leave it out")
    if group_size_for(weight.shape[1]) is None:
        raise GridError(
            f"`embedding_bits={BITS_IN_BYTES}`: 32 does not divide the {weight.shape[1]} columns; leave it out"
        )


def _check_head(model: nn.Module, head: str, group_size: int) -> None:
    if not head or not isinstance(model.get_output_embeddings(), nn.Linear):
        raise ModelError("`lm_head`: the model has no output head that is a linear layer; leave it out")
    check_divides(model.get_output_embeddings().in_features, group_size, head)
