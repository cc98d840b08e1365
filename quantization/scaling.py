"""The three ways a block is scaled before it is rounded: not at all, by a scales file, by a search of our own."""

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from architectures.family import Edge
from engine.text import beginning
from qlinear.errors import OptionError, ScalesError
from qlinear.files import why_not_writable
from qlinear.grid import Grid
from qlinear.progress import Note, silent
from qlinear.solvers.rtn import rtn
from quantization.paths import scales_path
from quantization.plan import Job
from quantization.recipe import Awq, Recipe
from quantization.streams import digest, tokens_of
from quantization.texts.samples import HUB, SELF
from quantization.unit import Unit, full_name
from scales import fold, zoo
from scales.awq import LayerLoss, quantize_block
from scales.observe import Observation
from scales.search import Rounding


@dataclass
class Scaling(ABC):
    """awq: what results call it; dtype: in which precision it wants a block's weights; path: the scales file;

    looks: whether it wants to see what a block makes of the text;

    text: what the scales were searched on, where another run has searched them; fallback_blocks: those that AWQ would
    have made worse.
    """

    awq: Awq
    dtype: torch.dtype
    path: Path | None = None
    looks: ClassVar[bool] = False
    text: dict | None = None
    fallback_blocks: list[str] = field(default_factory=list)

    @abstractmethod
    def apply(self, unit: Unit, seen: Observation | None) -> dict[str, LayerLoss]:
        """Change a unit, which showed `seen` before, in place; what `seen` says of its linears' inputs changes with it.

        Searched or loaded, the same scales thus give the same bits. Returns the losses of its linears by local name,
        where known.
        """

    def found(self) -> tuple[dict, dict[str, Tensor]]:
        """All that was found so far, for a run that goes on after this one: what JSON holds, and tensors by name."""
        return {}, {}

    def take_up(self, record: dict, kept: dict[str, Tensor]) -> None:  # noqa: B027
        """Know what an earlier run had `found`; there may be more among the tensors."""

    def save(self, text: dict | None) -> None:  # noqa: B027
        """Keep what was found, if anything was searched, and on which text."""


class NoScaling(Scaling):
    def __init__(self) -> None:
        super().__init__(Awq.NONE, torch.bfloat16)

    def apply(self, unit: Unit, seen: Observation | None) -> dict[str, LayerLoss]:
        return {}


class LoadedScaling(Scaling):
    """Scales from a file, checked against the model as a whole before the first block is touched."""

    def __init__(self, job: Job, path: Path, file: zoo.ScaleFile):
        """Raises `ScalesError` for a file that does not belong to the job."""
        super().__init__(Awq.LOAD, torch.float32, path, file.meta.get("calibration"))
        zoo.check_made_for(path, file, _made_for(job))
        self.file = file
        self._job, self._blocks = job, _by_block(job, file)

    def apply(self, unit: Unit, seen: Observation | None) -> dict[str, LayerLoss]:
        scales = self._blocks[unit.index]
        for edge, vector in scales.scales:
            fold.apply_scale(unit.block, edge, vector, self._job.source.config)
        _clip(unit.block, scales.clips, self._job.recipe)
        if seen:
            _divide(seen, scales.scales, self._job.source.config)
        return {}


class SearchedScaling(Scaling):
    """AWQ's search."""

    looks = True

    def __init__(self, job: Job, path: Path):
        super().__init__(Awq.RUN, torch.float32, path)
        self._job = job
        # the search looks at what its blocks, quantized, hand over
        told = {**_made_for(job), "grids": _grids(job), "solver": job.recipe.solver}
        self._file = zoo.ScaleFile(meta={name: value for name, value in told.items() if value is not None})

    def apply(self, unit: Unit, seen: Observation | None) -> dict[str, LayerLoss]:
        config = self._job.source.config
        roundings = {name: _plain_rounding(self._job.grid_of(full_name(unit.name, name))) for name in unit.linears}
        found = quantize_block(unit.block, unit.anatomy, config, seen, roundings, ranks=self._job.ranks)
        _clip(unit.block, found.clips, self._job.recipe)
        _divide(seen, found.scales, config)
        if found.fell_back:
            self.fallback_blocks.append(unit.name)
        for edge, vector in found.scales:
            layers = tuple(full_name(unit.name, name) for name in edge.layers)
            self._file.scales.append((full_name(unit.name, edge.prev), layers, vector))
        self._file.clips += [(full_name(unit.name, name), limits) for name, limits in found.clips.items()]
        return found.losses

    def found(self) -> tuple[dict, dict[str, Tensor]]:
        file = self._file
        record = {
            "fallback_blocks": self.fallback_blocks,
            "scales": [[prev, *layers] for prev, layers, _ in file.scales],
            "clips": [layer for layer, _ in file.clips],
        }
        vectors = {f"scale.{index}": vector for index, (_, _, vector) in enumerate(file.scales)}
        return record, vectors | {f"clip.{index}": limits for index, (_, limits) in enumerate(file.clips)}

    def take_up(self, record: dict, kept: dict[str, Tensor]) -> None:
        self.fallback_blocks = list(record["fallback_blocks"])
        self._file.scales = [
            (prev, tuple(layers), kept[f"scale.{index}"]) for index, (prev, *layers) in enumerate(record["scales"])
        ]
        self._file.clips = [(layer, kept[f"clip.{index}"]) for index, layer in enumerate(record["clips"])]
        _by_block(self._job, self._file)  # raises for what does not belong to the model
        if not set(self.fallback_blocks) <= set(self._job.plan.units):
            raise ValueError(f"blocks {self.fallback_blocks}")

    def save(self, text: dict | None) -> None:
        self._file.meta["calibration"] = text
        zoo.write(self.path, self._file)


def open_scaling(job: Job) -> Scaling:
    """The leading rank decides and reads; the others do as it does, with what it has read."""
    scaling = _decided(job) if job.ranks.leads else None
    file = scaling.file if isinstance(scaling, LoadedScaling) else None
    awq, path, file = job.ranks.told(scaling and (scaling.awq, scaling.path, file))
    if scaling is not None:
        return scaling
    if file is not None:
        return LoadedScaling(job, path, file)
    return SearchedScaling(job, path) if awq is Awq.RUN else NoScaling()


def _decided(job: Job) -> Scaling:
    """Decide between the three by the recipe; `auto` loads a file that fits exactly, and searches otherwise."""
    recipe = job.recipe
    if recipe.awq is Awq.NONE:
        return NoScaling()
    path = Path(recipe.scales) if recipe.scales else scales_path(job.source.name, _grouped(job))
    if recipe.awq is Awq.LOAD:
        return LoadedScaling(job, path, zoo.read(path))
    is_there = os.path.isfile(path)  # a name that is too long names none
    if recipe.awq is Awq.AUTO and is_there:
        file, reason = _read_kept(path, given=bool(recipe.scales))
        if file is not None and _fits(file, job):
            scaling = LoadedScaling(job, path, file)
            job.watch(Note(f"loading AWQ scales from {path}"))
            return scaling
        if recipe.scales:
            raise OptionError(f"{reason}; `awq=load` takes it as it is, `awq=run` replaces it")
        job.watch(Note(f"{reason}; searching anew and replacing it"))
    elif recipe.scales and is_there:
        zoo.read(path)  # raises for what is no file of scales: nothing else is replaced
    _check_writable(path)
    return SearchedScaling(job, path)


def _read_kept(path: Path, given: bool) -> tuple[zoo.ScaleFile | None, str]:
    """A file of scales, None for one in the cache that cannot be read; and why another search would be needed."""
    try:
        return zoo.read(path), f"{path} was made from other calibration data, for another solver or from another model"
    except ScalesError as error:
        if given:
            raise
        return None, str(error)


def _grouped(job: Job) -> Recipe:
    return job.recipe.settled(job.plan.group_size)


def _made_for(job: Job) -> dict[str, Any]:
    """What a scales file has to say of itself, if it says anything; None: nothing."""
    grid, mixed = job.grid, job.recipe.bits_per_weight
    asked = {"bits_per_weight": mixed, "symmetric": grid.symmetric, "fingerprint": job.source.fingerprint}
    return asked if mixed else asked | {"w_bit": grid.bits, "group_size": grid.group_size}


def _grids(job: Job) -> str | None:
    """Of a mixture, of how many bits and in groups of what size each linear is, which other options may change."""
    if job.recipe.bits_per_weight is None:
        return None
    units = zip(job.plan.units, job.plan.anatomies, strict=True)
    names = [full_name(unit, local) for unit, known in units for local in known.linears]
    told = "".join(f"{name} {(grid := job.grid_of(name)).bits} {grid.group_size}\n" for name in names)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _plain_rounding(grid: Grid) -> Rounding:
    """What the search rounds its candidates with, whichever way the codes are chosen in the end."""

    def quantize(weight: Tensor) -> Tensor:
        return rtn(weight, grid).dequantize()

    return Rounding(quantize, grid.group_size)


def _divide(seen: Observation, scales: list[tuple[Edge, Tensor]], config) -> None:
    """A router's input is scaled like those of the experts beside it, but nothing is known of it."""
    for edge, vector in scales:
        rounded = [name for name in edge.layers if name in seen.statistics]
        seen.divide(rounded, fold.consumer_scale(edge, vector, config))


def _clip(block: nn.Module, clips: dict[str, Tensor], recipe: Recipe) -> None:
    """Clips are for plain rounding; every other solver finds ranges of its own for the weights as they are."""
    if recipe.solver != "rtn":
        return
    for name, limits in clips.items():
        fold.apply_clip(block.get_submodule(name), limits)


def _by_block(job: Job, file: zoo.ScaleFile) -> list[zoo.BlockScales]:
    model, config, plan = job.source.model, job.source.config, job.plan

    def linear_shape(name: str) -> tuple[int, int]:
        try:
            linear = model.get_submodule(name)
            return linear.out_features, linear.in_features
        except AttributeError as error:
            raise KeyError(name) from error

    def scale_length(index: int, edge: Edge) -> int:
        return fold.scale_length(model.get_submodule(plan.units[index]), edge, config)

    known = {unit: anatomy.edges for unit, anatomy in zip(plan.units, plan.anatomies, strict=True)}
    return zoo.by_block(file, known, linear_shape, scale_length, lambda name: job.grid_of(name).group_size)


def _fits(file: zoo.ScaleFile, job: Job) -> bool:
    """Whether a file found under the default name would come out of a search with these very options."""
    made_from = file.meta.get("calibration")
    if made_from is None:  # a file of the zoo, put there by the user
        return True
    known = {"fingerprint": job.source.fingerprint, "solver": job.recipe.solver, "grids": _grids(job)}
    if any(file.meta.get(name) != value for name, value in known.items()):
        return False
    return all(made_from.get(key) == value for key, value in _known_of_text(job).items())


def _known_of_text(job: Job) -> dict[str, Any]:
    """What the calibration of a search now would say of itself: its tokens, but for a text that takes a network, or an
    hour.
    """
    recipe = job.recipe
    if recipe.calib_data not in (*HUB, SELF):
        return {"tokens": digest(tokens_of(replace(job, watch=silent))[0])}
    drawn = {name: getattr(recipe, name) for name in ("n_samples", "seqlen", "seed")}
    bos = beginning(job.source.tokenizer, recipe.bos)
    return {"source": recipe.calib_data, **drawn, "bos": bos is not None}


def _check_writable(path: Path) -> None:
    """Before hours of search: whether its scales can be kept. Raises `OptionError`."""
    reason = why_not_writable(path, makes_folder=True)
    if reason is not None:
        raise OptionError(f"scales cannot be saved in {path}: {reason}; give another `scales`")
