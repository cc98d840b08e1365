"""MIT-Han-Lab result files: `{"scale": [(prev, (layer, ...), tensor)], "clip": [(layer, tensor)]}`, names global.

The one legacy format that is a pickle. It is read with torch's restricted unpickler only, which builds containers and
tensors and nothing else, and what it says is checked against the model before anything is changed. Files written here
carry a third entry, `"meta"`, which readers of the format pass over: it tells for which model, bits, group size and
calibration the file was made.
"""

import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from architectures.family import Edge
from qlinear.errors import ScalesError
from qlinear.files import is_text, write_whole
from qlinear.grid import is_dense

# What `meta` may hold that is compared with what is wanted.
META_KINDS = {
    "w_bit": int,
    "group_size": int,
    "bits_per_weight": float,
    "grids": str,
    "symmetric": bool,
    "fingerprint": str,
    "solver": str,
    "calibration": dict,
}


@dataclass
class ScaleFile:
    """scales: (prev, layers, vector); clips: (layer, `(N, K / group_size, 1)`); names are the model's own."""

    scales: list[tuple[str, tuple[str, ...], Tensor]] = field(default_factory=list)
    clips: list[tuple[str, Tensor]] = field(default_factory=list)
    meta: dict = field(default_factory=dict)


def write(path: Path, file: ScaleFile) -> None:
    """Write a file that is whole from the moment it has its name; its folder is made where there is none.

    Raises `ScalesError` where it cannot be written.
    """
    content = {"scale": file.scales, "clip": file.clips, "meta": file.meta}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda out: torch.save(content, out))
    except (OSError, RuntimeError) as error:  # torch.save turns some of the system's errors into its own
        raise ScalesError(f"scales cannot be saved in {path}: {' '.join(str(error).split())[:200]}") from error


def read(path: Path) -> ScaleFile:
    """Raises `ScalesError` if the file is missing, is not of this format, or would run code when unpickled."""
    if not path.is_file():
        raise ScalesError(f"no scales file {path}; make one with `awq=run`, or go without: `awq=none`")
    try:
        raw = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ScalesError(
            f"scales file {path} is refused: it holds more than tensors and plain containers, or is damaged"
        ) from error
    except Exception as error:  # a torn zip archive, an empty file: torch raises many kinds
        raise ScalesError(f"scales file {path} cannot be read: {type(error).__name__}") from error
    try:
        if not isinstance(raw, dict):
            raise TypeError
        file = ScaleFile(
            [(_name(prev), tuple(map(_name, layers)), vector) for prev, layers, vector in raw["scale"]],
            [(_name(layer), limits) for layer, limits in raw["clip"]],
            dict(raw.get("meta", {})),
        )
        tensors = [vector for _, _, vector in file.scales] + [limits for _, limits in file.clips]
        if not all(map(_is_plain, tensors)):
            raise TypeError
        if not all(isinstance(file.meta[key], kind) for key, kind in META_KINDS.items() if key in file.meta):
            raise TypeError
        if not all(_is_note(name) and _is_note(note) for name, note in file.meta.get("calibration", {}).items()):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScalesError(f"scales file {path} is not an AWQ result file (entries 'scale' and 'clip')") from error
    return file


def _is_plain(tensor: object) -> bool:
    """Whether it is a tensor of floats that are there, one beside the other."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return torch.is_tensor(tensor) and is_dense(tensor) and tensor.dtype in floats


def _is_note(value: object) -> bool:
    """Whether it is something that a recipe can say of the calibration text: it goes into JSON after the last block."""
    if isinstance(value, str):
        return len(value) < 1000 and is_text(value)
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _name(value: object) -> str:
    """Raises `TypeError` for what is no module's name, without a look into it: a few lists may stand for billions."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w.]{1,300}", value):
        raise TypeError
    return value


@dataclass(frozen=True)
class BlockScales:
    """One block's part of a file, names local: what `scales.awq` would have found."""

    scales: list[tuple[Edge, Tensor]]
    clips: dict[str, Tensor]


def by_block(
    file: ScaleFile,
    known: Mapping[str, Sequence[Edge]],
    linear_shape: Callable[[str], tuple[int, int]],
    scale_length: Callable[[int, Edge], int],
    group_size: Callable[[str], int],
) -> list[BlockScales]:
    """Sort a file's entries by block, checking each against the model; raises `ScalesError`, changes nothing.

    known: the edges of each block, by its name, in order; linear_shape: global name -> (N, K) of a linear of the
    blocks, `KeyError` if there is none; group_size: of a linear, by global name; scale_length: number of a block, edge
    -> length of the vector that is searched for it.
    """
    block_names = list(known)
    blocks = [BlockScales([], {}) for _ in block_names]
    edges = [{(edge.prev, edge.layers): edge for edge in of_block} for of_block in known.values()]
    for prev, layers, vector in file.scales:
        index, (local_prev, *local_layers) = _localize(block_names, (prev, *layers))
        edge = edges[index].get((local_prev, tuple(local_layers)))
        if edge is None:
            # llm-awq scales bloom's and falcon's GELU, which it replaces by a module of its own.
            raise ScalesError(
                f"the scales file scales {prev} -> {', '.join(layers)}, which cannot be folded into this model: "
                f"{local_prev} is no norm or linear of it that feeds them; use `awq=run`"
            )
        if any(edge is other for other, _ in blocks[index].scales):
            raise ScalesError(f"the scales file scales {prev} -> {', '.join(layers)} twice")
        expected = scale_length(index, edge)
        if vector.shape != (expected,):
            raise ScalesError(
                f"the scales file has {tuple(vector.shape)} scales for {prev}, the model needs ({expected},): "
                f"it was made for another model"
            )
        if not (torch.isfinite(vector).all() and (vector > 0).all()):
            raise ScalesError(f"the scales file has a scale for {prev} that is not a positive finite number")
        blocks[index].scales.append((edge, vector.float()))
    for layer, limits in file.clips:
        index, (local,) = _localize(block_names, (layer,))
        try:
            n, k = linear_shape(layer)
        except KeyError as error:
            raise ScalesError(f"the scales file clips {layer}, which this model does not have") from error
        _check_clip_shape(layer, limits, n, k, group_size(layer))
        if not (torch.isfinite(limits).all() and (limits >= 0).all()):
            raise ScalesError(f"the scales file has a clip for {layer} that is negative or not finite")
        blocks[index].clips[local] = limits.float()
    _refuse_missing_blocks(file, block_names, blocks)
    return blocks


def _refuse_missing_blocks(file: ScaleFile, block_names: list[str], blocks: list[BlockScales]) -> None:
    for name, block in zip(block_names, blocks, strict=True):
        # Files written here leave out a block that fell back; they are known by their fingerprint.
        if not file.meta and not block.scales and not block.clips:
            raise ScalesError(f"the scales file has nothing for {name}: it was made for a model with fewer blocks")


def _localize(block_names: list[str], names: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    for index, block in enumerate(block_names):
        if all(name.startswith(block + ".") for name in names):
            return index, tuple(name[len(block) + 1 :] for name in names)
    raise ScalesError(f"the scales file names {names[0]}, which is in no decoder block of this model")


def _check_clip_shape(layer: str, limits: Tensor, n: int, k: int, group_size: int) -> None:
    if limits.dim() == 3 and limits.shape[0] == n and limits.shape[2] == 1:
        if limits.shape[1] == k // group_size:
            return
        if limits.shape[1] and k % limits.shape[1] == 0:
            made_for = k // limits.shape[1]
            raise ScalesError(f"the scales file was made for group size {made_for}, not {group_size} (layer {layer})")
    raise ScalesError(
        f"the scales file has clips {tuple(limits.shape)} for {layer}, the model needs ({n}, {k // group_size}, 1): "
        f"it was made for another model"
    )


def check_made_for(path: Path, file: ScaleFile, expected: dict) -> None:
    """Raise `ScalesError` if the file says, in its entry or its name, that it was made for other options.

    One that does not say for which kind of grid was made for asymmetric ones, as llm-awq makes them all. `expected`
    holds `w_bit` and `group_size`, where all layers have the same, `bits_per_weight` (None there), `symmetric` and, for
    files written here, `fingerprint` of the float model.
    """
    said = {"symmetric": False} | file.meta
    named = re.search(r"-w(\d+)-g(\d+)", path.name)
    if named:
        said.setdefault("w_bit", int(named.group(1)))
        said.setdefault("group_size", int(named.group(2)))
    words = {
        "w_bit": "{} bits".format,
        "group_size": "group size {}".format,
        "bits_per_weight": lambda bits: "one grid for all layers" if bits is None else f"{bits:g} bits a weight",
        "symmetric": lambda is_so: "symmetric grids" if is_so else "asymmetric grids",
        "fingerprint": "the model of fingerprint {:.12}".format,
    }
    for key, phrase in words.items():
        if key in said and key in expected and said[key] != expected[key]:
            made, wanted = phrase(said[key]), phrase(expected[key])
            raise ScalesError(f"scales file {path} was made for {made}, not for {wanted}")
