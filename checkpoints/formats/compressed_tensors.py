"""The compressed-tensors *pack-quantized* format: how a quantized linear is named, shaped and described in it.

Of a linear `NAME`, a checkpoint holds `NAME.weight_packed`, `.weight_zero_point` unless it is symmetric,
`.weight_scale`, `.weight_shape` and, if it has one, `.bias` (`PackedWeight` gives shapes and dtypes).
`quantization_config` in config.json has the rest.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.sources import FLOATS, TensorSource, is_finite
from qlinear.errors import CheckpointError
from qlinear.grid import Grid, GridWeight
from qlinear.packing import PackedWeight, middle_zeros
from qlinear.replace import LinearWeight
from qlinear.sizes import BITS, GROUP_SIZES

WORDS, ZEROS, SCALES, SHAPE, BIAS = "weight_packed", "weight_zero_point", "weight_scale", "weight_shape", "bias"
# What may stand in the place of "weight".
WEIGHT_PARTS = (WORDS, ZEROS, SCALES, SHAPE)


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


def weight_parts(symmetric: bool) -> tuple[str, ...]:
    """What is stored of a quantized linear beside its bias."""
    return tuple(part for part in WEIGHT_PARTS if not (symmetric and part == ZEROS))


# ---- writing


def linear_tensors(weight: GridWeight, bias: Tensor | None, symmetric: bool) -> dict[str, Tensor]:
    """What a checkpoint holds of a linear, by the last part of the name.

    bias: `(N,)` of any float dtype, or None; symmetric: of the grid that the weight was put on.
    """
    packed = PackedWeight.pack(weight)
    shape = torch.tensor(packed.shape, dtype=torch.int64)
    whole = {WORDS: packed.words, ZEROS: packed.zeros, SCALES: packed.scales, SHAPE: shape}
    tensors = {part: whole[part] for part in weight_parts(symmetric)}
    return tensors if bias is None else tensors | {BIAS: bias.to(torch.bfloat16)}


def quantization_section(grid: Grid, head: tuple[str, int] | None, kept: list[str]) -> dict:
    """The `quantization_config` of `config.json`.

    grid: of the linears; head: name and group size of the output head if it is quantized; kept: names of linears left
    in bfloat16. `dequantize` lets transformers turn the weights to bfloat16 as it loads them: its other way, keeping
    them packed until the first forward, expects unpacked zero points and refuses every asymmetric checkpoint. Readers
    with kernels of their own (vLLM) pass over it. The observer and the zero points' dtype are what the
    compressed-tensors library writes; they say nothing of the weights.
    """

    def scheme(targets: list[str], size: int) -> dict:
        weights = {
            "num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "strategy": "group", "group_size": size,
            "dynamic": False, "observer": "memoryless_minmax", "observer_kwargs": {},
            "zp_dtype": None if grid.symmetric else "torch.int8",
        }  # fmt: skip
        return {"targets": targets, "weights": weights}

    groups = {"group_0": scheme(["Linear"], grid.group_size)}
    if head is not None:
        groups["group_1"] = scheme([f"re:.*{head[0]}$"], head[1])
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": kept,
        "dequantize": True,
    }


# ---- reading


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says of its weights."""

    bits: int
    group_sizes: frozenset[int]
    symmetric: bool


def read_section(section: Any, directory: Path) -> Quantization:
    """Check a config's `quantization_config` against what this program runs; raises `CheckpointError`."""
    where = f"{directory}/config.json"
    if not isinstance(section, dict) or section.get("format") != "pack-quantized":
        raise CheckpointError(f"{where} has no pack-quantized quantization_config: it is not a quantized checkpoint")
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
    for entry in weights:
        _check_scheme(entry, where)
    bits = {entry["num_bits"] for entry in weights}
    if len(bits) > 1:
        raise CheckpointError(f"{where} mixes bit widths {sorted(bits)}; this program runs one per checkpoint")
    symmetric = {_is_symmetric(entry) for entry in weights}
    if len(symmetric) > 1:
        raise CheckpointError(
            f"{where} mixes symmetric weights and asymmetric ones; this program runs one kind at a time"
        )
    return Quantization(bits.pop(), frozenset(entry["group_size"] for entry in weights), symmetric.pop())


def _check_whole(section: dict, where: str) -> None:
    """Refuse what would change the meaning of the weights if it were passed over."""
    if section.get("quant_method", "compressed-tensors") != "compressed-tensors":
        raise CheckpointError(f"{where} is of quant_method {section['quant_method']!r}, not compressed-tensors")
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


def _check_scheme(entry: dict, where: str) -> None:
    _refuse_unknown(entry, WEIGHTS_KEYS, where)
    if entry.get("type", "int") != "int":
        raise CheckpointError(f"{where} says weights of type {entry['type']!r}; this program runs int")
    if type(entry.get("num_bits")) is not int or entry["num_bits"] not in BITS:  # 4.0 is in (3, 4)
        raise CheckpointError(f"{where} says {entry.get('num_bits')} bits; this program runs {BITS}")
    if entry.get("group_size") not in GROUP_SIZES:
        raise CheckpointError(f"{where} says group size {entry.get('group_size')}; it has to be in {GROUP_SIZES}")
    if type(_is_symmetric(entry)) is not bool:
        raise CheckpointError(f"{where} says symmetric {entry['symmetric']!r}; it has to be true or false")
    if entry.get("strategy") != "group":
        raise CheckpointError(f"{where} says strategy {entry.get('strategy')!r}; group is what this program runs")
    if entry.get("dynamic"):
        raise CheckpointError(f"{where} says weights that are quantized as they run (dynamic), which is not done here")
    if entry.get("actorder") in ("group", "dynamic", True):
        raise CheckpointError(f"{where} permutes channels between groups (actorder), which does not run here")


def _is_symmetric(entry: dict) -> Any:
    """Weights are, where nothing is said, as in the library's own `QuantizationArgs`."""
    return entry.get("symmetric", True)


def quantized_names(stored: Iterable[str]) -> list[str]:
    """The linears that are stored quantized, in the order of their tensors."""
    return [name.removesuffix(f".{WORDS}") for name in stored if name.endswith(f".{WORDS}")]


@dataclass(frozen=True)
class StoredLinear:
    """A quantized linear whose stored shapes are right. shape: (out_features, in_features)."""

    shape: tuple[int, int]
    bits: int
    symmetric: bool
    has_bias: bool


def check_linear(
    model: nn.Module, name: str, stored: dict[str, tuple[int, ...]], quantization: Quantization
) -> StoredLinear:
    """Check the shapes of a linear's tensors against each other and the model. Raises `CheckpointError`."""
    try:
        linear = model.get_submodule(name)
        n, k = linear.out_features, linear.in_features
    except AttributeError as error:
        raise CheckpointError(
            f"the checkpoint quantizes {name}, which the model of its config does not have"
        ) from error
    shapes = {part: stored.get(f"{name}.{part}") for part in (*WEIGHT_PARTS, BIAS)}
    scale = shapes[SCALES]
    group_size = k // scale[1] if scale and len(scale) == 2 and scale[1] else 0
    if group_size not in quantization.group_sizes or k % group_size:
        raise CheckpointError(
            f"{name}: scales {scale} do not make groups of {sorted(quantization.group_sizes)} over {k} inputs; the "
            f"config does not belong to these weights"
        )
    bits, groups = quantization.bits, k // group_size
    expected = {
        WORDS: (n, -(-k * bits // 32)),
        ZEROS: None if quantization.symmetric else (-(-n * bits // 32), groups),
        SCALES: (n, groups),
        BIAS: None if linear.bias is None else (n,),
    }
    for part, shape in expected.items():
        if shapes[part] != shape:
            raise CheckpointError(
                f"{name}.{part} is {shapes[part]} on disk, {shape} by the config ({bits} bits, group size {group_size})"
            )
    return StoredLinear((n, k), bits, quantization.symmetric, linear.bias is not None)


def read_linear(name: str, found: StoredLinear, source: TensorSource, lent: ExitStack) -> LinearWeight:
    """The linear's weight over its tensors as the source lends them, until `lent` is closed."""

    def read(part: str) -> Tensor:
        tensor = lent.enter_context(source.borrow(f"{name}.{part}"))
        if part in (SCALES, BIAS) and tensor.dtype not in FLOATS:
            raise CheckpointError(f"{name}.{part} is stored as {tensor.dtype}, not as floats")
        check_finite(f"{name}.{part}", tensor)
        return tensor

    words, scales = read(WORDS), read(SCALES)
    zeros = middle_zeros(found.bits, *scales.shape) if found.symmetric else read(ZEROS)
    bias = read(BIAS) if found.has_bias else None
    if words.dtype != torch.int32 or zeros.dtype != torch.int32:
        raise CheckpointError(f"{name}: packed weights have to be int32, not {words.dtype} and {zeros.dtype}")
    return LinearWeight(PackedWeight(words, zeros, scales.to(torch.bfloat16), found.shape, found.bits), bias)


def check_finite(name: str, value: Tensor) -> None:
    """Raise `CheckpointError` for a stored tensor with a value that is infinite or NaN."""
    if value.is_floating_point() and not is_finite(value):
        raise CheckpointError(f"{name} holds a value that is not finite; quantize the model again")
