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
from scales.awq import LayerLoss, quantize_block, watched_modules
from scales.observe import Call, observe_block, record_calls
from scales.precision import onednn_float32
from scales.search import Quantizer

# Samples on which the search confirms its candidates and compares a block with its plainly rounded self.
N_CONFIRM_SAMPLES = 4


class Scaling(Protocol):
    """mode: what results call it; dtype: in which precision it wants a block's weights; path: the scales file."""

    mode: str
    dtype: torch.dtype
    path: Path | None
    calibration: dict | None
    fallback_blocks: list[str]

    def apply(self, index: int, block: nn.Module) -> dict[str, LayerLoss]:
        """Change unit `index` in place; returns the losses of its linears by local name, where they are known."""

    def save(self) -> None:
        """Keep what was found, if anything was searched."""


@dataclass
class NoScaling:
    mode: str = "none"
    dtype: torch.dtype = torch.bfloat16
    path: Path | None = None
    calibration: dict | None = None
    fallback_blocks: list[str] = field(default_factory=list)

    def apply(self, index: int, block: nn.Module) -> dict[str, LayerLoss]:
        return {}

    def save(self) -> None: ...


@dataclass
class LoadedScaling:
    """Scales from a file, checked against the model as a whole before the first block is touched."""

    path: Path
    blocks: list[zoo.BlockScales]
    config: object
    calibration: dict | None
    mode: str = "load"
    dtype: torch.dtype = torch.float32
    fallback_blocks: list[str] = field(default_factory=list)

    def apply(self, index: int, block: nn.Module) -> dict[str, LayerLoss]:
        for edge, vector in self.blocks[index].scales:
            fold.apply_scale(block, edge, vector, self.config)
        for name, limits in self.blocks[index].clips.items():
            fold.apply_clip(block.get_submodule(name), limits)
        return {}

    def save(self) -> None: ...


@dataclass
class SearchedScaling:
    """AWQ's search; `hidden` is the input of the next block for every calibration sample."""

    path: Path
    source: PretrainedModel
    plan: Plan
    quantize: Quantizer
    file: zoo.ScaleFile
    hidden: list[Tensor]
    calls: list[Call]
    mode: str = "run"
    dtype: torch.dtype = torch.float32
    fallback_blocks: list[str] = field(default_factory=list)

    @property
    def calibration(self) -> dict:
        return self.file.meta["calibration"]

    def apply(self, index: int, block: nn.Module) -> dict[str, LayerLoss]:
        unit, architecture = self.plan.units[index], self.plan.architecture
        linears = unit_linears(self.source.model, unit)
        with onednn_float32():
            seen = observe_block(
                block, linears, watched_modules(architecture), self.hidden, self.calls[index], N_CONFIRM_SAMPLES
            )
            found = quantize_block(
                block, linears, architecture, self.source.config, seen, self.quantize, self.plan.group_size
            )
        self.hidden = seen.outputs
        if found.fell_back:
            self.fallback_blocks.append(unit)
        for edge, vector in found.scales:
            layers = tuple(full_name(unit, name) for name in edge.layers)
            self.file.scales.append((full_name(unit, edge.prev), layers, vector))
        self.file.clips += [(full_name(unit, name), limits) for name, limits in found.clips.items()]
        return found.losses

    def save(self) -> None:
        zoo.write(self.path, self.file)


def open_scaling(request, source: PretrainedModel, plan: Plan, quantize: Quantizer, progress: Progress) -> Scaling:
    """Decide between the three by `request.awq`; `auto` loads a file that fits exactly, and searches otherwise."""
    if request.awq == "none":
        return NoScaling()
    default = paths.scales_path(source.name, request.w_bit, plan.group_size)
    path = Path(request.scales) if request.scales else default
    if request.awq == "load":
        return _load(path, zoo.read(path), request, source, plan)
    if request.awq == "auto" and path.is_file():
        file = zoo.read(path)
        if _fits(file, request, source):
            progress.note(f"loading AWQ scales from {path}")
            return _load(path, file, request, source, plan)
        made = f"{path} was made from other calibration data or another model"
        if request.scales:
            raise OptionError(f"{made}; --awq load takes it as it is, --awq run replaces it")
        progress.note(f"{made}; searching anew and replacing it")
    return _search(path, request, source, plan, quantize, progress)


def _load(path: Path, file: zoo.ScaleFile, request, source: PretrainedModel, plan: Plan) -> LoadedScaling:
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
    return LoadedScaling(path, blocks, source.config, file.meta.get("calibration"))


def _fits(file: zoo.ScaleFile, request, source: PretrainedModel) -> bool:
    """Whether a file found under the default name would come out of a search with these very options."""
    made_from = file.meta.get("calibration")
    if made_from is None:  # a file of the zoo, put there by the user
        return True
    if file.meta.get("fingerprint") != source.fingerprint:
        return False
    wanted = {"n_samples": request.n_samples, "seqlen": request.seqlen, "seed": request.seed}
    if any(made_from.get(key) != value for key, value in wanted.items()):
        return False
    name = os.path.basename(request.calib_data)
    return made_from.get("source") == name and (
        name in calibration.SOURCES or made_from.get("sha256") == calibration.read_text(request.calib_data).sha256
    )


def _search(
    path: Path, request, source: PretrainedModel, plan: Plan, quantize: Quantizer, progress: Progress
) -> SearchedScaling:
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and request.seqlen > context:
        raise OptionError(f"--seqlen {request.seqlen} is more than the model's context of {context} tokens")
    if request.calib_data in calibration.SOURCES and request.calib_data != "builtin":
        progress.note(f"reading calibration text {request.calib_data} from the hub")
    text = calibration.read_text(request.calib_data)
    blocks = calibration.token_blocks(source.tokenizer, text, request.n_samples, request.seqlen, request.seed)
    _check_writable(path)
    drawn = len(blocks.tokens)
    if drawn < request.n_samples:
        progress.note(f"calibration text {text.name} has {drawn} blocks of {request.seqlen} tokens; using them all")
    meta = {
        "w_bit": request.w_bit,
        "group_size": plan.group_size,
        "fingerprint": source.fingerprint,
        "calibration": {
            "source": text.name,
            "sha256": text.sha256,
            "n_samples": request.n_samples,
            "samples_drawn": drawn,
            "seqlen": request.seqlen,
            "seed": request.seed,
        },
    }
    hidden, calls = _first_inputs(source, plan, blocks.tokens)
    return SearchedScaling(path, source, plan, quantize, zoo.ScaleFile(meta=meta), hidden, calls)


def _check_writable(path: Path) -> None:
    """Before hours of search: whether its scales can be kept."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        raise OptionError(f"scales cannot be saved in {path}: that is a directory; name a file with --scales")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"scales cannot be saved in {path}: no writing in {folder}; give another --scales")


def _first_inputs(source: PretrainedModel, plan: Plan, tokens: Tensor) -> tuple[list[Tensor], list[Call]]:
    """What the first block sees; the weights this takes are let go of again."""
    parent_name, _, blocks_name = plan.architecture.blocks.rpartition(".")
    parent = source.model.get_submodule(parent_name)
    front = [f"{parent_name}.{name}" for name, _ in parent.named_children() if name != blocks_name]
    front.append(plan.units[0])
    for name in front:
        source.materialize(name, torch.float32)
    blocks = [source.model.get_submodule(unit) for unit in plan.units]
    hidden, calls = record_calls(source.model, blocks, tokens)
    for name in front:
        source.release(name)
    return [x.to(torch.bfloat16) for x in hidden], calls  # half the memory, and none of float16's overflow
