"""Open a quantized checkpoint onto a backend: a directory that is checked before it is believed."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from architectures.experts import Origin
from architectures.registry import find_family
from checkpoints.formats.readers import Layout, open_layout
from checkpoints.formats.stored import BIAS, Rounding, StoredLinear, check_finite
from checkpoints.local import hub_name
from checkpoints.matching import may_be_left
from checkpoints.meta import (
    build_empty,
    check_depth,
    check_described,
    places_of_tensors,
    put,
    set_generation_config,
)
from checkpoints.places import ModelSource
from checkpoints.quantized_gguf import GgufCheckpoint, is_gguf
from checkpoints.recipes import asked_for_flash, read_recipe
from checkpoints.sources import FLOATS, TensorSource, one_line_errors
from checkpoints.tokenizers import open_tokenizer
from qlinear.backends.base import Backend
from qlinear.errors import CheckpointError, one_line
from qlinear.replace import replace_linears


@dataclass(frozen=True)
class QuantizedModel:
    """module: its quantized layers on their backend; model_bytes: all tensors as stored; recipe: {} if unknown.

    notes: what the user should know of the weights.
    """

    module: nn.Module
    tokenizer: Any
    flash_attention: bool
    model_bytes: int
    recipe: dict
    notes: tuple[str, ...] = ()


def open_quantized(
    directory: Path, backend: Backend, flash_attention: bool | None = None, trust_remote_code: bool = False
) -> QuantizedModel:
    """Load a checkpoint onto a backend. Raises `CheckpointError` or `ModelError` in one line.

    directory: or a `.gguf` file; flash_attention: join the linears that read one input; None: as was asked for when the
    checkpoint was made, and where nothing was, yes.
    """
    if is_gguf(directory):
        return _open_gguf(directory, backend, flash_attention is not False)
    layout, model, source = open_stored(directory, trust_remote_code)
    recipe = read_recipe(directory)
    flash = asked_for_flash(recipe) if flash_attention is None else flash_attention
    groups = joined_groups(model, backend.joins_gate_up) if flash else []
    with named(directory):
        load_weights(model, source, layout, backend, groups)
    model.to(backend.device)
    stored_bytes = sum(file.stat().st_size for file in source.files)
    tokenizer = read_tokenizer(directory, trust_remote_code)
    return QuantizedModel(model, tokenizer, flash, stored_bytes, recipe, layout.notes())


def _open_gguf(path: Path, backend: Backend, flash: bool) -> QuantizedModel:
    file = GgufCheckpoint(path)
    groups = joined_groups(file.model, backend.joins_gate_up) if flash else []
    for names in _together(file.model, dict.fromkeys(file.names), groups):
        replace_linears(file.model, {name: file.read_linear(name) for name in names}, backend)
    file.read_others()
    file.model.to(backend.device)
    stored_bytes = sum(each.stat().st_size for each in file.files)
    return QuantizedModel(file.model, file.tokenizer, flash, stored_bytes, {}, file.notes())


def check_quantized(directory: Path, trust_remote_code: bool = False) -> nn.Module:
    """Whether a checkpoint is whole: the names and shapes of all tensors, without reading any of them; and its model,
    on meta.

    Raises what `open_quantized` does.
    """
    layout, model, source = open_stored(directory, trust_remote_code)
    with named(directory):
        check_tensors(model, source, layout)
    return model


def open_stored(
    directory: Path, trust_remote_code: bool, rounding: Rounding | None = None
) -> tuple[Layout, nn.Module, ModelSource]:
    """How a checkpoint's weights lie in its files, its model on meta, and its tensors by the names it has for them.

    rounding: of the scales as they are read; by default to the bfloat16 that the kernels hold.
    """
    layout = open_layout(_read_config(directory).get("quantization_config"), directory, rounding)
    with named(directory):
        stored = layout.tensors(directory)
    model, origins = _empty_model(directory, len(stored.shapes), trust_remote_code)
    with one_line_errors(f"{directory}: the weights are not arranged as this kind of model has them"):
        return layout, model, ModelSource(stored, model, origins, layout.parts)


@contextmanager
def named(directory: Path) -> Iterator[None]:
    """Say of which checkpoint an error is."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def _read_config(directory: Path) -> dict:
    path = directory / "config.json"
    if not path.is_file():
        lacking = "it has no config.json" if directory.exists() else "there is no such directory"
        lacking = "a file that is no .gguf" if directory.is_file() else lacking
        advice = "quantize a model to make one"
        if not directory.exists() and (name := hub_name(str(directory))):
            advice = f"one on the hub is fetched by `hf download {name}`, which says where to"
        raise CheckpointError(f"{directory} is not a checkpoint: {lacking}; {advice}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def _empty_model(directory: Path, n_tensors: int, trust_remote_code: bool) -> tuple[nn.Module, dict[str, Origin]]:
    from transformers import AutoConfig

    with one_line_errors(f"{directory}/config.json describes no model that can be opened"):
        check_described(str(directory), _read_config(directory), trust_remote_code)
        opened = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        if hasattr(opened, "quantization_config"):  # which may lie in a file of its own
            del opened.quantization_config  # its layers are built here, not by transformers
        check_depth(str(directory), opened, n_tensors)
        model, origins = build_empty(opened, torch.bfloat16, trust_remote_code)
    set_generation_config(model, directory)
    return model, origins


def read_tokenizer(directory: Path, trust_remote_code: bool):
    """A checkpoint's tokenizer. Raises `ModelError` where there is none, or one that is damaged."""
    with one_line_errors(f"the tokenizer in {directory} cannot be opened"):
        return open_tokenizer(directory, trust_remote_code)


def joined_groups(model: nn.Module, gate_up: bool) -> list[tuple[str, ...]]:
    """Names of the linears that one norm feeds within one module, block by block: q, k and v; gate and up if asked."""
    family = find_family(model.config)
    together = family.joined_inputs(gate_up) if family else []
    blocks = family.block_names(model) if together else ()
    return [tuple(f"{block}.{name}" for name in layers) for block in blocks for layers in together]


def load_weights(
    model: nn.Module,
    source: TensorSource,
    layout: Layout,
    backend: Backend,
    groups: Iterable[tuple[str, ...]],
) -> None:
    """Fill a model on the meta device from a checkpoint's tensors, its quantized linears on `backend`.

    groups: names of the linears to be joined. A layer's stored weight is mapped while the backend lays it out, and no
    longer: what is held at any time is the model so far and one layer, or one group.
    """
    found = check_tensors(model, source, layout)
    # First, as the largest of them is copied while nothing else is held.
    _read_others(model, source, found)
    for names in _together(model, found, groups):
        with ExitStack() as lent:
            weights = {name: layout.read(name, found[name], source, lent) for name in names}
            replace_linears(model, weights, backend)
            del weights  # before the files are unmapped


def check_tensors(model: nn.Module, source: TensorSource, layout: Layout) -> dict[str, StoredLinear]:
    """The quantized linears by name; every tensor of the model is stored in its shape. Raises `CheckpointError`."""
    # A dict for its order: the same damage is told in the same words every time.
    quantized = dict.fromkeys(layout.quantized_names(source.shapes))
    if not quantized:
        raise CheckpointError("the checkpoint holds no quantized layer")
    found = {name: layout.check(model, name, source.shapes) for name in quantized}
    ties = {}
    for name, tensor in _others(model, found).items():
        ties.setdefault(id(tensor), []).append(name)
        shape = source.shapes.get(name)
        if shape is not None and shape != tuple(tensor.shape):
            raise CheckpointError(f"{name} is {shape} on disk, {tuple(tensor.shape)} by the config")
    _refuse_missing([names[0] for names in ties.values() if not any(name in source.shapes for name in names)])
    _refuse_leftover(model, source, layout, found)
    return found


def _refuse_leftover(model: nn.Module, source: TensorSource, layout: Layout, found: dict[str, StoredLinear]) -> None:
    """What is stored and has no place would have meant something to whoever wrote it."""
    parts = {f"{name}.{part}" for name in found for part in (*layout.parts, BIAS)}
    known = parts | _others(model, found).keys()
    left = [name for name in source.shapes if name not in known and not may_be_left(model, name)]
    if left:
        raise CheckpointError(
            f"the checkpoint holds {left[0]}, for which the model of its config has no place ({len(left)} such)"
        )


def _refuse_missing(names: list[str]) -> None:
    if names:
        raise CheckpointError(f"the checkpoint has no tensor {names[0]} ({len(names)} missing)")


def _others(model: nn.Module, quantized: dict) -> dict[str, Tensor]:
    """Every tensor that is not of a quantized layer, by name."""
    tensors = model.state_dict(keep_vars=True).items()
    return {name: tensor for name, tensor in tensors if name.rpartition(".")[0] not in quantized}


def _together(model: nn.Module, quantized: dict, groups: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The quantized layers, alone or with those that a group joins them to.

    The last comes first: the head is the largest, and while it is mapped little else should be held.
    """
    group_of = {name: names for names in groups if quantized.keys() >= set(names) for name in names}
    ordered = [name for name, _ in model.named_modules(remove_duplicate=False) if name in quantized]
    return list(dict.fromkeys(group_of.get(name, (name,)) for name in reversed(ordered)))


def _read_others(model: nn.Module, source: TensorSource, quantized: dict) -> None:
    """Copy in every tensor that is not of a quantized layer, a tied one wherever it is, by whichever name it has."""
    places = places_of_tensors(model)
    for tensor, names in names_stored(model, source, quantized).items():
        put(places[tensor], tensor, read_other(tensor, names, source).to(tensor.dtype))
    _refuse_missing([name for name, tensor in _others(model, quantized).items() if tensor.is_meta])


def names_stored(model: nn.Module, source: TensorSource, quantized: dict) -> dict[Tensor, list[str]]:
    """Of each tensor of the model that is not of a quantized layer, the names by which it is stored: tied, several."""
    names: dict[Tensor, list[str]] = {}
    for name, tensor in _others(model, quantized).items():
        if name in source.shapes:
            names.setdefault(tensor, []).append(name)
    return names


def check_others(model: nn.Module, source: TensorSource, quantized: dict) -> None:
    """Raise `CheckpointError` for a tensor that is not of a quantized layer and could not be loaded."""
    for tensor, names in names_stored(model, source, quantized).items():
        read_other(tensor, names, source)


def read_other(tensor: Tensor, names: Sequence[str], source: TensorSource) -> Tensor:
    """What is stored of a tensor of the model, in floats of any width, by each of its names.

    Raises `CheckpointError` for what is of another kind, not finite in the model's type, or not the same by all names.
    """
    first, dtype = None, tensor.dtype
    for name in names:
        with source.borrow(name) as stored:
            value = stored.clone()
        _check_type(name, value, dtype)
        check_finite(name, value.to(dtype))
        if first is None:
            first = value
        elif not torch.equal(first.to(dtype), value.to(dtype)):
            raise CheckpointError(f"{names[0]} and {name} differ but the configuration ties them")
    return first


def _check_type(name: str, value: Tensor, dtype: torch.dtype) -> None:
    """What is no float is none by being read as one."""
    if dtype.is_floating_point and value.dtype not in FLOATS:
        raise CheckpointError(f"{name} is stored as {value.dtype}, not as floats")
    if not dtype.is_floating_point and value.dtype != dtype:
        raise CheckpointError(f"{name} is stored as {value.dtype}, the model wants {dtype}")
