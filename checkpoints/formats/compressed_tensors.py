"""The compressed-tensors *pack-quantized* format: how a quantized linear is named, shaped and described in it.

Of a linear `NAME`, a checkpoint holds `NAME.weight_packed`, `.weight_zero_point` unless it is symmetric,
`.weight_scale`, `.weight_shape` and, if it has one, `.bias` (`PackedWeight` gives shapes and dtypes).
`quantization_config` in config.json has the rest.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.formats.stored import (
    BIAS,
    Rounding,
    StoredLinear,
    Tensors,
    check_group_size,
    check_shapes,
    linear_of,
    runs_in,
)
from checkpoints.sources import TensorSource
from qlinear.errors import CheckpointError
from qlinear.grid import Grid, GridWeight
from qlinear.packing import PackedWeight, middle_zeros
from qlinear.replace import LinearWeight
from qlinear.sizes import BITS

WORDS, ZEROS, SCALES, SHAPE = "weight_packed", "weight_zero_point", "weight_scale", "weight_shape"
# The group of each input, where llm-compressor has sorted them (actorder).
ORDER = "weight_g_idx"
# What may stand in the place of "weight".
WEIGHT_PARTS = (WORDS, ZEROS, SCALES, SHAPE, ORDER)


# What other programs' sections say too: of the section itself, of a group, of its weights.
SECTION_KEYS = frozenset(
    "quant_method format quantization_status config_groups ignore dequantize global_compression_ratio version "
    "kv_cache_scheme sparsity_config transform_config run_compressed".split()
)
GROUP_KEYS = frozenset("targets weights input_activations output_activations format".split())
WEIGHTS_KEYS = frozenset(
    "num_bits type symmetric strategy group_size block_structure dynamic actorder scale_dtype zp_dtype observer "
    "observer_kwargs".split()
)


SORTED = (True, "group", "dynamic")  # what an actorder says that leaves no neighbours together


def weight_parts(symmetric: bool) -> tuple[str, ...]:
    """What this program stores of a quantized linear beside its bias."""
    return (WORDS, SCALES, SHAPE) if symmetric else (WORDS, ZEROS, SCALES, SHAPE)


# ---- writing


def linear_tensors(weight: GridWeight, bias: Tensor | None, symmetric: bool) -> dict[str, Tensor]:
    """What a checkpoint holds of a linear, by the last part of the name.

    bias: `(N,)` of any float dtype, or None, which becomes that of the scales; symmetric: of the grid that the weight
    was put on.
    """
    packed = PackedWeight.pack(weight)
    shape = torch.tensor(packed.shape, dtype=torch.int64)
    whole = {WORDS: packed.words, ZEROS: packed.zeros, SCALES: packed.scales, SHAPE: shape}
    tensors = {part: whole[part] for part in weight_parts(symmetric)}
    return tensors if bias is None else tensors | {BIAS: bias.to(weight.scales.dtype)}


def grid_weight(tensors: Mapping[str, Tensor], bits: int) -> GridWeight:
    """The weight that `linear_tensors` was given, of what it gave."""
    scales, shape = tensors[SCALES], tuple(tensors[SHAPE].tolist())
    zeros = tensors[ZEROS] if ZEROS in tensors else middle_zeros(bits, *scales.shape)
    return PackedWeight(tensors[WORDS], zeros, scales, shape, bits).unpack()


def quantization_section(grid: Grid, head: tuple[str, int] | None, kept: list[str]) -> dict:
    """The `quantization_config` of `config.json`.

    grid: of the linears; head: name and group size of the output head if it is quantized; kept: names of linears left
    in bfloat16. `dequantize` lets transformers turn the weights to bfloat16 as it loads them: its other way, keeping
    them packed until the first forward, expects unpacked zero points and refuses every asymmetric checkpoint. Readers
    with kernels of their own (vLLM) pass over it. The observer is what the compressed-tensors library writes; it says
    nothing of the weights. A zero point's dtype is left to the library: its version 0.12 refuses to be told.
    """
    groups = [_written(grid, ["Linear"])]
    if head is not None:
        groups.append(_written(replace(grid, group_size=head[1]), [f"re:.*{head[0]}$"]))
    return _section(groups, kept)


def mixed_section(grids: Mapping[str, Grid], kept: list[str]) -> dict:
    """The same where linears differ. grids: of every quantized linear by name.

    transformers 5 dequantizes all of them by the first scheme, whatever the others say. Not told to, it takes each
    layer's own where they are symmetric, and refuses the others, as above.
    """
    named: dict[Grid, list[str]] = {}
    for name, grid in grids.items():
        named.setdefault(grid, []).append(name)
    section = _section([_written(grid, names) for grid, names in named.items()], kept)
    return section | {"dequantize": len({grid.bits for grid in named}) == 1}


def _written(grid: Grid, targets: list[str]) -> dict:
    weights = {
        "num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "strategy": "group",
        "group_size": grid.group_size, "dynamic": False, "observer": "memoryless_minmax", "observer_kwargs": {},
    }  # fmt: skip
    return {"targets": targets, "weights": weights}


def _section(groups: list[dict], kept: list[str]) -> dict:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "ignore": kept,
        "dequantize": True,
    }


# ---- reading


@dataclass(frozen=True)
class Scheme:
    """What a config says of the weights of some linears. group_size: None for whole rows; ordered: whether inputs were
    sorted by activation before they were put into groups.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    ordered: bool = False

    def __str__(self) -> str:
        groups = "whole rows" if self.group_size is None else f"group size {self.group_size}"
        return f"{self.bits} bits, {groups}" + ", symmetric" * self.symmetric


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says of its weights: a linear is of one of these schemes, and its shapes say which."""

    schemes: tuple[Scheme, ...]
    rounding: Rounding


def read_section(section: Any, directory: Path, rounding: Rounding | None = None) -> Quantization:
    """Check a config's `quantization_config` against what this program runs; raises `CheckpointError`.

    rounding: of the scales as they are read; by default to the bfloat16 that the kernels hold.
    """
    where = f"{directory}/config.json"
    if not isinstance(section, dict) or section.get("format") not in ("pack-quantized", "mixed-precision"):
        kind = section.get("format") or section.get("quant_method") if isinstance(section, dict) else None
        found = f"its weights are {kind[:50]!r}" if isinstance(kind, str) else "it is not a quantized checkpoint"
        raise CheckpointError(f"{where} has no pack-quantized quantization_config: {found}")
    _check_whole(section, where)
    _refuse_unknown(section, SECTION_KEYS, where)
    groups = section.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
    if not schemes or not all(isinstance(entry, dict) for entry in weights) or len(weights) < len(schemes):
        raise CheckpointError(f"{where} has no config_groups with weights")
    for scheme in schemes:
        _refuse_unknown(scheme, GROUP_KEYS, where)
    formats = {scheme.get("format") or "pack-quantized" for scheme in schemes}
    if formats != {"pack-quantized"}:
        raise CheckpointError(f"{where} has groups of format {sorted(map(str, formats))}; pack-quantized is what runs")
    if any(scheme.get("input_activations") or scheme.get("output_activations") for scheme in schemes):
        raise CheckpointError(f"{where} quantizes activations too; this program runs quantized weights only")
    return Quantization(tuple(dict.fromkeys(_scheme(entry, where) for entry in weights)), rounding or Rounding())


def _check_whole(section: dict, where: str) -> None:
    """Refuse what would change the meaning of the weights if it were passed over."""
    for name in ("transform_config", "kv_cache_scheme"):
        if section.get(name):
            raise CheckpointError(f"{where} has a {name}, which this program does not run")
    sparsity = section.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"):
        raise CheckpointError(f"{where} has a sparsity_config, which this program does not run")


def _refuse_unknown(part: dict, known: frozenset[str], where: str) -> None:
    """Who knows what it means."""
    for name, value in part.items():
        if name not in known and value:
            raise CheckpointError(f"{where} says {str(name)[:100]!r} of the weights, which this program does not know")


def _scheme(entry: dict, where: str) -> Scheme:
    _refuse_unknown(entry, WEIGHTS_KEYS, where)
    if entry.get("dynamic"):
        raise CheckpointError(f"{where} says weights that are quantized as they run (dynamic), which is not done here")
    if entry.get("type", "int") != "int":
        raise CheckpointError(f"{where} says weights of type {entry['type']!r}; this program runs int")
    bits = entry.get("num_bits")
    if type(bits) is not int or bits not in BITS:  # 4.0 is in (3, 4)
        raise CheckpointError(f"{where} says {bits} bits; this program runs {BITS}")
    symmetric = entry.get("symmetric", True)  # as in the library's own `QuantizationArgs`
    if type(symmetric) is not bool:
        raise CheckpointError(f"{where} says symmetric {symmetric!r}; it has to be true or false")
    strategy, group_size = entry.get("strategy"), entry.get("group_size")
    if strategy not in ("group", "channel"):
        raise CheckpointError(f"{where} says strategy {strategy!r}; group and channel are what this program runs")
    if strategy == "channel" and group_size in (None, -1):
        return Scheme(bits, None, symmetric)
    if type(group_size) is not int or group_size <= 0 or runs_in(group_size) is None:
        raise CheckpointError(f"{where} says group size {group_size}; it has to be a multiple of 32")
    return Scheme(bits, group_size, symmetric, entry.get("actorder") in SORTED)


def check_linear(
    model: nn.Module, name: str, stored: dict[str, tuple[int, ...]], quantization: Quantization
) -> StoredLinear:
    """Check the shapes of a linear's tensors against each other and the model. Raises `CheckpointError`."""
    n, k, takes_bias = linear_of(model, name)
    scheme = _scheme_of(name, n, k, stored, quantization)
    group_size = scheme.group_size or k
    check_group_size(name, group_size)
    bits, groups = scheme.bits, k // group_size
    expected = {
        WORDS: (n, -(-k * bits // 32)),
        ZEROS: None if scheme.symmetric else (-(-n * bits // 32), groups),
        SCALES: (n, groups),
        ORDER: (k,) if f"{name}.{ORDER}" in stored or scheme.ordered else None,
        BIAS: (n,) if takes_bias else None,
    }
    check_shapes(name, stored, expected, str(scheme))
    return StoredLinear((n, k), bits, groups, scheme.symmetric, takes_bias, takes_bias)


def _scheme_of(name: str, n: int, k: int, stored: dict[str, tuple[int, ...]], quantization: Quantization) -> Scheme:
    """The scheme that the shapes are of, or one of the same groups, which will be told apart by what does not fit."""
    scale = stored.get(f"{name}.{SCALES}")
    groups = scale[1] if scale and len(scale) == 2 else 0
    grouped = [scheme for scheme in quantization.schemes if groups and k == groups * (scheme.group_size or k)]
    if not grouped:
        sizes = sorted({scheme.group_size or k for scheme in quantization.schemes})
        raise CheckpointError(
            f"{name}: scales {scale} do not make groups of {sizes} over {k} inputs; the config does not belong to "
            f"these weights"
        )

    def unlike(scheme: Scheme) -> int:
        words = stored.get(f"{name}.{WORDS}") == (n, -(-k * scheme.bits // 32))
        return (not words) + ((f"{name}.{ZEROS}" in stored) == scheme.symmetric)

    return min(grouped, key=unlike)


def read_linear(
    name: str, found: StoredLinear, source: TensorSource, lent: ExitStack, quantization: Quantization
) -> LinearWeight:
    """The linear's weight over its tensors as the source lends them, until `lent` is closed."""
    tensors = Tensors(name, source, lent)
    if f"{name}.{ORDER}" in source.shapes:
        _check_order(name, tensors.integers(ORDER), found)
    if f"{name}.{SHAPE}" in source.shapes:
        with ExitStack() as aside:
            _check_told(name, Tensors(name, source, aside).integers(SHAPE), found)
    words = tensors.words(WORDS)
    scales = quantization.rounding(f"{name}.{SCALES}", tensors.floats(SCALES))
    repeat = found.group_size // runs_in(found.group_size)
    scales = scales.repeat_interleave(repeat, 1) if repeat > 1 else scales
    if found.symmetric:
        zeros = middle_zeros(found.bits, *scales.shape)
    else:
        zeros = tensors.words(ZEROS)
        zeros = zeros.repeat_interleave(repeat, 1) if repeat > 1 else zeros
    return LinearWeight(PackedWeight(words, zeros, scales, found.shape, found.bits), tensors.bias(found))


def _check_told(name: str, told: Tensor, found: StoredLinear) -> None:
    if told.flatten().tolist() != list(found.shape):
        raise CheckpointError(f"{name}.{SHAPE} says {told.tolist()}, the config {list(found.shape)}")


def _check_order(name: str, groups: Tensor, found: StoredLinear) -> None:
    """Sorted by activation, inputs are in groups that are no runs of neighbours; -1 throughout says that none were."""
    if (groups == -1).all():
        return
    if not torch.equal(groups.to(torch.int64), torch.arange(found.shape[1]) // found.group_size):
        raise CheckpointError(
            f"{name}.{ORDER} permutes channels between groups (actorder), which does not run here; quantize with "
            f"actorder weight, which keeps neighbours together"
        )
