"""Load a quantized checkpoint: a compressed-tensors `pack-quantized` directory, checked before it is believed."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.empty import build_empty, check_depth
from checkpoints.pretrained import TOKENIZER_FILES
from checkpoints.sources import TensorSource, one_line_errors, open_directory
from qlinear.backends.base import Backend
from qlinear.errors import CheckpointError, ModelError
from qlinear.grid import BITS, GROUP_SIZES
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight
from qlinear.replace import prepare, replace_linear
from scales.mappings import GATE_UP, architecture_of

RECIPE = "awq_recipe.json"
PACKED = ".weight_packed"
PARTS = ("weight_packed", "weight_zero_point", "weight_scale", "weight_shape", "bias")


@dataclass(frozen=True)
class LoadedModel:
    """model: prepared for its backend; model_bytes: all tensors as stored; recipe: how it was made, {} if unknown."""

    model: nn.Module
    tokenizer: Any
    flash_attention: bool
    model_bytes: int
    recipe: dict


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says of its weights."""

    bits: int
    group_sizes: frozenset[int]


def load(
    directory: Path, backend: Backend, flash_attention: bool | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a checkpoint onto a backend. Raises `CheckpointError` or `ModelError` in one line.

    flash_attention: join the linears that read one input; None: as the checkpoint was made.
    """
    config = _read_config(directory)
    quantization = read_quantization(config.pop("quantization_config", None), directory)
    source = open_directory(directory)
    model = _empty_model(directory, len(source.shapes), trust_remote_code)
    recipe = _read_recipe(directory)
    flash = recipe.get("flash_attention", False) is True if flash_attention is None else flash_attention
    groups = groups_of(model, backend.joins_gate_up) if flash else []
    try:
        load_weights(model, source, quantization, backend, groups)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model.to(backend.device)
    return LoadedModel(model, _tokenizer(directory, trust_remote_code), flash, _stored_bytes(source), recipe)


def _read_config(directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} is not a checkpoint: it has no config.json; make one with --task quantize")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def _empty_model(directory: Path, n_tensors: int, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoConfig, GenerationConfig

    with one_line_errors(f"{directory}/config.json describes no model that can be opened"):
        opened = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        del opened.quantization_config  # its layers are built here, not by transformers
        check_depth(str(directory), opened, n_tensors)
        model = build_empty(opened, torch.bfloat16, trust_remote_code)
    if (directory / "generation_config.json").is_file():
        with one_line_errors(f"{directory}/generation_config.json cannot be understood"):
            model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


def _tokenizer(directory: Path, trust_remote_code: bool):
    from transformers import AutoTokenizer

    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        raise CheckpointError(f"{directory} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    with one_line_errors(f"the tokenizer in {directory} cannot be opened"):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)


def _read_recipe(directory: Path) -> dict:
    try:
        recipe = json.loads((directory / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def read_quantization(section: Any, directory: Path) -> Quantization:
    """Check a config's `quantization_config` against what this program runs; raises `CheckpointError`."""
    where = f"{directory}/config.json"
    if not isinstance(section, dict) or section.get("format") != "pack-quantized":
        raise CheckpointError(f"{where} has no pack-quantized quantization_config: it is not a quantized checkpoint")
    groups = section.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
    if not schemes or not all(isinstance(entry, dict) for entry in weights) or len(weights) < len(schemes):
        raise CheckpointError(f"{where} has no config_groups with weights")
    if any(scheme.get("input_activations") or scheme.get("output_activations") for scheme in schemes):
        raise CheckpointError(f"{where} quantizes activations too; this program runs quantized weights only")
    for entry in weights:
        if type(entry.get("num_bits")) is not int or entry["num_bits"] not in BITS:  # 4.0 is in (3, 4)
            raise CheckpointError(f"{where} says {entry.get('num_bits')} bits; this program runs {BITS}")
        if entry.get("group_size") not in GROUP_SIZES:
            raise CheckpointError(f"{where} says group size {entry.get('group_size')}; it has to be in {GROUP_SIZES}")
        if entry.get("symmetric") is not False or entry.get("strategy") != "group":
            raise CheckpointError(f"{where} is not asymmetric per group, which is what this program runs")
        if entry.get("actorder") in ("group", "dynamic", True):
            raise CheckpointError(f"{where} permutes channels between groups (actorder), which does not run here")
    bits = {entry["num_bits"] for entry in weights}
    if len(bits) > 1:
        raise CheckpointError(f"{where} mixes bit widths {sorted(bits)}; this program runs one per checkpoint")
    return Quantization(bits.pop(), frozenset(entry["group_size"] for entry in weights))


def load_weights(
    model: nn.Module,
    source: TensorSource,
    quantization: Quantization,
    backend: Backend,
    groups: Iterable[tuple[str, ...]],
) -> None:
    """Fill a model on the meta device from a checkpoint's tensors, its quantized linears prepared for `backend`.

    groups: names of the linears to be joined. A layer's stored weight is mapped while the backend lays it out, and no
    longer: what is held at any time is the model so far and one layer, or one group.
    """
    # A dict for its order: the same damage is told in the same words every time.
    quantized = dict.fromkeys(name.removesuffix(PACKED) for name in source.shapes if name.endswith(PACKED))
    if not quantized:
        raise CheckpointError("the checkpoint holds no quantized layer")
    layers = {name: _check_layer(model, name, source.shapes, quantization) for name in quantized}
    # First, as the largest of them is copied while nothing else is held.
    _read_others(model, source, quantized)
    for names in _together(model, quantized, groups):
        with ExitStack() as lent:
            for name in names:
                replace_linear(model, name, _read_layer(name, layers[name], source, lent))
            prepare(model, names, backend)


def _together(model: nn.Module, quantized: dict, groups: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The quantized layers, alone or with those that a group joins them to.

    The last comes first: the head is the largest, and while it is mapped little else should be held.
    """
    group_of = {name: names for names in groups if quantized.keys() >= set(names) for name in names}
    ordered = [name for name, _ in model.named_modules(remove_duplicate=False) if name in quantized]
    return list(dict.fromkeys(group_of.get(name, (name,)) for name in reversed(ordered)))


def _read_others(model: nn.Module, source: TensorSource, quantized: dict) -> None:
    """Copy in every tensor that is not of a quantized layer."""

    def wanted() -> dict[str, Tensor]:
        tensors = model.state_dict(keep_vars=True).items()
        return {name: tensor for name, tensor in tensors if name.rpartition(".")[0] not in quantized}

    for name, tensor in wanted().items():
        if name in source.shapes:
            with source.borrow(name) as stored:
                value = stored.clone()
            _check_finite(name, value)
            if value.shape != tensor.shape:
                raise CheckpointError(f"{name} is {tuple(value.shape)} on disk, {tuple(tensor.shape)} by the config")
            _assign(model, name, value)
    model.tie_weights()
    missing = [name for name, tensor in wanted().items() if tensor.is_meta]
    if missing:
        raise CheckpointError(f"the checkpoint has no tensor {missing[0]} ({len(missing)} missing)")


def _check_finite(name: str, value: Tensor) -> None:
    # One vectorized pass; a NaN anywhere makes both ends NaN.
    if value.is_floating_point() and not all(end.isfinite() for end in torch.aminmax(value)):
        raise CheckpointError(f"{name} holds a value that is not finite; quantize the model again")


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if leaf in owner._parameters:
        value = nn.Parameter(value, requires_grad=False)
    setattr(owner, leaf, value)


@dataclass(frozen=True)
class Layer:
    """A quantized linear whose stored shapes are right. shape: (out_features, in_features)."""

    shape: tuple[int, int]
    bits: int
    has_bias: bool


def _check_layer(model: nn.Module, name: str, stored: dict[str, tuple[int, ...]], quantization: Quantization) -> Layer:
    """Check the shapes of a layer's tensors against each other and the model."""
    try:
        linear = model.get_submodule(name)
        n, k = linear.out_features, linear.in_features
    except AttributeError as error:
        raise CheckpointError(
            f"the checkpoint quantizes {name}, which the model of its config does not have"
        ) from error
    shapes = {part: stored.get(f"{name}.{part}") for part in PARTS}
    scale = shapes["weight_scale"]
    group_size = k // scale[1] if scale and len(scale) == 2 and scale[1] else 0
    if group_size not in quantization.group_sizes or k % group_size:
        raise CheckpointError(
            f"{name}: scales {scale} do not make groups of {sorted(quantization.group_sizes)} over {k} inputs; the "
            f"config does not belong to these weights"
        )
    bits, groups = quantization.bits, k // group_size
    expected = {
        "weight_packed": (n, -(-k * bits // 32)),
        "weight_zero_point": (-(-n * bits // 32), groups),
        "weight_scale": (n, groups),
        "bias": None if linear.bias is None else (n,),
    }
    for part, shape in expected.items():
        if shapes[part] != shape:
            raise CheckpointError(
                f"{name}.{part} is {shapes[part]} on disk, {shape} by the config ({bits} bits, group size {group_size})"
            )
    return Layer((n, k), bits, linear.bias is not None)


def _read_layer(name: str, layer: Layer, source: TensorSource, lent: ExitStack) -> QLinearPerGrp:
    """The layer over its tensors as the source lends them, until `lent` is closed."""

    def read(part: str) -> Tensor:
        tensor = lent.enter_context(source.borrow(f"{name}.{part}"))
        _check_finite(f"{name}.{part}", tensor)
        return tensor

    words, zeros, scales = (read(part) for part in ("weight_packed", "weight_zero_point", "weight_scale"))
    bias = read("bias") if layer.has_bias else None
    if words.dtype != torch.int32 or zeros.dtype != torch.int32:
        raise CheckpointError(f"{name}: packed weights have to be int32, not {words.dtype} and {zeros.dtype}")
    return QLinearPerGrp(PackedWeight(words, zeros, scales.to(torch.bfloat16), layer.shape, layer.bits), bias)


def groups_of(model: nn.Module, gate_up: bool) -> list[tuple[str, ...]]:
    """Names of the linears that one norm feeds within one module, block by block: q, k and v; gate and up if asked."""
    try:
        architecture = architecture_of(model.config)
    except ModelError:
        return []
    together = [
        edge.layers
        for edge in architecture.edges
        if len(edge.layers) > 1 and (gate_up or edge.layers != GATE_UP)
        if len({name.rpartition(".")[0] for name in edge.layers}) == 1
    ]
    blocks = [f"{architecture.blocks}.{i}" for i in range(len(model.get_submodule(architecture.blocks)))]
    return [tuple(f"{block}.{name}" for name in layers) for block in blocks for layers in together]


def _stored_bytes(source: TensorSource) -> int:
    return sum(file.stat().st_size for file in source.files)
