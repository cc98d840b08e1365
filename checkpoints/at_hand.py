"""Open a quantized checkpoint for the cpu's kernels in milliseconds: what is plain is read as it lies.

Whatever is not plain raises, and is opened the long way (`checkpoints.quantized`), which knows more and says in one
line what is wrong.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from checkpoints.formats.in_bytes import taken_out
from checkpoints.formats.names import BY_WORDS
from checkpoints.mapped import StoredBytes, map_directory
from checkpoints.plain_tokenizer import PlainTokenizer
from checkpoints.proofs import is_proven
from checkpoints.recipes import asked_for_flash, read_recipe
from checkpoints.stored_linears import AwqLinears, CompressedLinears, GptqLinears, Linears
from checkpoints.stored_parts import StoredParts
from qlinear.backends.stack import Unsupported
from qlinear.sizes import BITS

# What a quantization_config may say, beside what concerns other readers only; the rest changes the meaning of weights.
_SECTION = {
    "quant_method": ("compressed-tensors",), "format": ("pack-quantized",), "quantization_status": ("compressed",),
    "kv_cache_scheme": (None,), "transform_config": (None, {}), "sparsity_config": (None, {}),
    "global_compression_ratio": (None,), "dequantize": (True, False),
}  # fmt: skip
_WEIGHTS = {
    "type": ("int",), "strategy": ("group",), "dynamic": (False,), "block_structure": (None,),
    "actorder": (None, "static", "weight"),  # in which groups are of neighbours
    "observer": ("memoryless_minmax", "minmax"), "observer_kwargs": ({}, None), "scale_dtype": (None,),
    "zp_dtype": (None, "torch.int8"),
}  # fmt: skip

_GROUP = {"input_activations": (None,), "output_activations": (None,), "format": (None, "pack-quantized")}
# Of the other formats, what changes the meaning of weights beside what is read; shapes say which linears are quantized.
_AWQ = {"bits": (4,), "zero_point": (True,), "version": ("gemm", "GEMM")}
_VERSIONS = (None, "gptq", "gptq_v2")
_GPTQ = {"checkpoint_format": _VERSIONS, "format": _VERSIONS, "pack_dtype": (None, "int32")}


@dataclass(frozen=True)
class Opened:
    """config: the fields of config.json; generation: of generation_config.json, None where there is none;
    model_bytes: of the weight files; mark: of the files that it was opened from.
    """

    config: SimpleNamespace
    generation: Mapping[str, Any] | None
    parts: StoredParts
    tokenizer: PlainTokenizer
    model_bytes: int
    recipe: dict
    mark: tuple

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the weights, once they are laid out."""
        return self.parts.notes()


def open_at_hand(directory: Path, flash_attention: bool | None = None, int8: bool = False) -> Opened:
    """flash_attention: None: as was asked for when the checkpoint was made; int8: as of `StoredParts`.

    Raises `Unsupported`, or whatever else it is that makes a checkpoint not a plain one.
    """
    mark = mark_of(directory)
    if not is_proven(directory):
        raise Unsupported("nobody has compared it with what transformers makes of it")
    config, recipe = _read_object(directory / "config.json"), read_recipe(directory)
    if config.get("auto_map"):
        raise Unsupported("it has code of its own")
    if flash_attention is None and not asked_for_flash(recipe):
        raise Unsupported("it runs on its modules by default")
    section, in_bytes = taken_out(config.pop("quantization_config", None))
    quantized = _read_section(section)
    described = SimpleNamespace(**config)
    tensors, stored_bytes = map_directory(directory)
    for name, size in in_bytes.items():
        tensors[f"{name}.weight"] = StoredBytes.taken_from(tensors, name, size)
    generation = directory / "generation_config.json"
    return Opened(
        described,
        _read_object(generation) if generation.is_file() else None,
        StoredParts(tensors, described, quantized, int8),
        PlainTokenizer(directory),
        stored_bytes,
        recipe,
        mark,
    )


def mark_of(directory: Path) -> tuple:
    """What is another where the weights in a directory, or what describes them, have been replaced."""
    told = ((file.name, file.stat()) for file in sorted(directory.glob("*.safetensors")) + [directory / "config.json"])
    try:
        return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in told)
    except OSError:  # they are gone
        return ()


def _read_object(path: Path) -> dict:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise Unsupported(f"{path.name} is not an object")
    return value


def _read_section(section: Any) -> Linears:
    """Of a section as this program writes it, or AutoAWQ or a GPTQ program."""
    readers = {"compressed-tensors": _read_compressed, "awq": _read_awq, "gptq": _read_gptq}
    return readers[section.get("quant_method", "compressed-tensors")](section)


def _read_compressed(section: dict) -> CompressedLinears:
    groups = section["config_groups"].values()
    aside = ("config_groups", "ignore", "version")  # of the library that wrote it
    _check_plain({name: value for name, value in section.items() if name not in aside}, _SECTION)
    weights, sizes = [], set()
    for group in groups:
        _check_plain({name: value for name, value in group.items() if name not in ("targets", "weights")}, _GROUP)
        weights.append(dict(group["weights"]))
    found = {(one.pop("num_bits"), one.pop("symmetric")) for one in weights}
    for one in weights:
        sizes.add(one.pop("group_size"))
        _check_plain(one, _WEIGHTS)
    bits = frozenset(_bits(bits) for bits, _ in found)
    (symmetric,) = {symmetric for _, symmetric in found}
    if type(symmetric) is not bool:
        raise Unsupported(f"symmetric {symmetric!r}")
    return CompressedLinears(bits, symmetric, frozenset(sizes))


def _read_awq(section: dict) -> AwqLinears:
    _check_plain({name: section[name] for name in _AWQ.keys() & section.keys()}, _AWQ)
    return AwqLinears(frozenset({section["group_size"]}))


def _read_gptq(section: dict) -> GptqLinears:
    _check_plain({name: section[name] for name in _GPTQ.keys() & section.keys()}, _GPTQ)
    bits = _bits(section["bits"])
    less_one = (section.get("checkpoint_format") or section.get("format") or "gptq") == "gptq"
    if less_one and bits != 4:
        raise Unsupported("zero points less one, of three bits")
    meta = section.get("meta")
    borrows = isinstance(meta, dict) and BY_WORDS in str(meta.get("quantizer", "")).lower()
    return GptqLinears(bits, frozenset({section["group_size"]}), less_one, borrows)


def _bits(value: Any) -> int:
    if value not in BITS or type(value) is not int:
        raise Unsupported(f"{value} bits")
    return value


def _check_plain(given: dict, plain: dict[str, tuple]) -> None:
    for name, value in given.items():
        if name not in plain or value not in plain[name]:
            raise Unsupported(f"its quantization_config has {name} {value!r}")
