"""The three ways a block is scaled before it is rounded: not at all, by a scales file, by a search of our own."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from awq_cli import paths
from awq_cli.tasks.plan import Plan, full_name, unit_linears
from awq_cli.tasks.progress import Progress
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import OptionError
from scales import calibration, fold, zoo
from scales.awq import LayerLoss, quantize_block
from scales.observe import Observation
from scales.search import Quantizer


class Scaling(Protocol):
    """mode: what results call it; dtype: in which precision it wants a block's weights; path: the scales file."""

    mode: str
    dtype: torch.dtype
    path: Path | None
    fallback_blocks: list[str]

    def apply(self, index: int, block: nn.Module, seen: Observation | None) -> dict[str, LayerLoss]:
        """Change unit `index`, which showed `seen`, in place; what `seen` says of its linears' inputs changes with it.

        Returns the losses of its linears by local name, where known.
        """

    def found(self) -> tuple[dict, dict[str, Tensor]]:
        """All that was found so far, for a run that goes on after this one: what JSON holds, and tensors by name."""

    def take_up(self, record: dict, kept: dict[str, Tensor]) -> None:
        """Know what an earlier run had `found`; there may be more among the tensors."""

    def save(self, calibration: dict | None) -> None:
        """Keep what was found, if anything was searched, and on which text."""


class _FindsNothing:
    def found(self) -> tuple[dict, dict[str, Tensor]]:
        return {}, {}

    def take_up(self, record: dict, kept: dict[str, Tensor]) -> None: ...

    def save(self, calibration: dict | None) -> None: ...


@dataclass
class NoScaling(_FindsNothing):
    mode: str = "none"
    dtype: torch.dtype = torch.bfloat16
    path: Path | None = None
    fallback_blocks: list[str] = field(default_factory=list)

    def apply(self, index: int, block: nn.Module, seen: Observation | None) -> dict[str, LayerLoss]:
        return {}


@dataclass
class LoadedScaling(_FindsNothing):
    """Scales from a file, checked against the model as a whole before the first block is touched."""

    path: Path
    blocks: list[zoo.BlockScales]
    config: object
    clip: bool
    calibration: dict | None
    mode: str = "load"
    dtype: torch.dtype = torch.float32
    fallback_blocks: list[str] = field(default_factory=list)

    def apply(self, index: int, block: nn.Module, seen: Observation | None) -> dict[str, LayerLoss]:
        for edge, vector in self.blocks[index].scales:
            fold.apply_scale(block, edge, vector, self.config)
        if self.clip:
            _clip(block, self.blocks[index].clips)
        return {}


@dataclass
class SearchedScaling:
    """AWQ's search."""

    path: Path
    source: PretrainedModel
    plan: Plan
    quantize: Quantizer
    clip: bool
    file: zoo.ScaleFile
    mode: str = "run"
    dtype: torch.dtype = torch.float32
    fallback_blocks: list[str] = field(default_factory=list)

    def apply(self, index: int, block: nn.Module, seen: Observation | None) -> dict[str, LayerLoss]:
        unit, architecture = self.plan.units[index], self.plan.architecture
        linears = unit_linears(self.source.model, unit)
        found = quantize_block(
            block, linears, architecture, self.source.config, seen, self.quantize, self.plan.group_size
        )
        if self.clip:
            _clip(block, found.clips)
        for edge, vector in found.scales:
            seen.divide(edge.layers, fold.consumer_scale(edge, vector, self.source.config))
        if found.fell_back:
            self.fallback_blocks.append(unit)
        for edge, vector in found.scales:
            layers = tuple(full_name(unit, name) for name in edge.layers)
            self.file.scales.append((full_name(unit, edge.prev), layers, vector))
        self.file.clips += [(full_name(unit, name), limits) for name, limits in found.clips.items()]
        return found.losses

    def found(self) -> tuple[dict, dict[str, Tensor]]:
        record = {
            "fallback_blocks": self.fallback_blocks,
            "scales": [[prev, *layers] for prev, layers, _ in self.file.scales],
            "clips": [layer for layer, _ in self.file.clips],
        }
        vectors = {f"scale.{index}": vector for index, (_, _, vector) in enumerate(self.file.scales)}
        return record, vectors | {f"clip.{index}": limits for index, (_, limits) in enumerate(self.file.clips)}

    def take_up(self, record: dict, kept: dict[str, Tensor]) -> None:
        self.fallback_blocks = list(record["fallback_blocks"])
        self.file.scales = [
            (prev, tuple(layers), kept[f"scale.{index}"]) for index, (prev, *layers) in enumerate(record["scales"])
        ]
        self.file.clips = [(layer, kept[f"clip.{index}"]) for index, layer in enumerate(record["clips"])]

    def save(self, calibration: dict | None) -> None:
        self.file.meta["calibration"] = calibration
        zoo.write(self.path, self.file)


def _clip(block: nn.Module, clips: dict[str, Tensor]) -> None:
    for name, limits in clips.items():
        fold.apply_clip(block.get_submodule(name), limits)


def open_scaling(request, source: PretrainedModel, plan: Plan, quantize: Quantizer, progress: Progress) -> Scaling:
    """Decide between the three by `request.awq`; `auto` loads a file that fits exactly, and searches otherwise.

    Clips are for plain rounding; every other solver finds ranges of its own for the weights as they are.
    """
    clip = request.solver == "rtn"
    if request.awq == "none":
        return NoScaling()
    default = paths.scales_path(source.name, request.w_bit, plan.group_size)
    path = Path(request.scales) if request.scales else default
    if request.awq == "load":
        return _load(path, zoo.read(path), request, source, plan, clip)
    if request.awq == "auto" and path.is_file():
        file = zoo.read(path)
        if _fits(file, request, source):
            progress.note(f"loading AWQ scales from {path}")
            return _load(path, file, request, source, plan, clip)
        made = f"{path} was made from other calibration data, for another solver or from another model"
        if request.scales:
            raise OptionError(f"{made}; --awq load takes it as it is, --awq run replaces it")
        progress.note(f"{made}; searching anew and replacing it")
    _check_writable(path)
    meta = {"w_bit": request.w_bit, "group_size": plan.group_size, "fingerprint": source.fingerprint}
    meta["solver"] = request.solver  # the search looks at what its blocks, quantized, hand over
    return SearchedScaling(path, source, plan, quantize, clip, zoo.ScaleFile(meta=meta))


def _load(path: Path, file: zoo.ScaleFile, request, source: PretrainedModel, plan: Plan, clip: bool) -> LoadedScaling:
    expected = {"w_bit": request.w_bit, "group_size": plan.group_size, "fingerprint": source.fingerprint}
    zoo.check_made_for(path, file, expected)

    def linear_shape(name: str) -> tuple[int, int]:
        try:
            linear = source.model.get_submodule(name)
            return linear.out_features, linear.in_features
        except AttributeError as error:
            raise KeyError(name) from error

    first_block = source.model.get_submodule(plan.units[0])

    def scale_length(edge) -> int:
        return fold.scale_length(first_block, edge, source.config)

    blocks = zoo.by_block(file, plan.architecture, list(plan.units), linear_shape, scale_length, plan.group_size)
    return LoadedScaling(path, blocks, source.config, clip, file.meta.get("calibration"))


def _fits(file: zoo.ScaleFile, request, source: PretrainedModel) -> bool:
    """Whether a file found under the default name would come out of a search with these very options."""
    made_from = file.meta.get("calibration")
    if made_from is None:  # a file of the zoo, put there by the user
        return True
    if file.meta.get("fingerprint") != source.fingerprint or file.meta.get("solver") != request.solver:
        return False
    wanted = {"n_samples": request.n_samples, "seqlen": request.seqlen, "seed": request.seed}
    if any(made_from.get(key) != value for key, value in wanted.items()):
        return False
    if made_from.get("source") != os.path.basename(request.calib_data):
        return False
    named = (*calibration.SOURCES, calibration.SELF)
    if request.calib_data in named and request.calib_data != "builtin":  # not to be had without a network, or an hour
        return True
    return made_from.get("sha256") == calibration.read_text(request.calib_data).sha256


def _check_writable(path: Path) -> None:
    """Before hours of search: whether its scales can be kept."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise OptionError(f"scales cannot be saved in {path}: that is a directory; name a file with --scales")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"scales cannot be saved in {path}: no writing in {folder}; give another --scales")
