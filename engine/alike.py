"""Whether a config.json, read as it lies, describes the stack that the configuration made of it does."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from architectures.registry import fused_families
from engine.parts import has_module
from engine.rotation import LENGTH_DEPENDENT, rope_parameters
from engine.runner import ids
from engine.stack import describe
from qlinear.backends.stack import GatedMlp, Unsupported

POSITIONS = 2  # the second one's angles are the frequencies
SAID = ("vocab_size", "max_position_embeddings")  # beside what a stack tells
TIED = "tie_word_embeddings"  # where it is not said, what is stored says it


def describes(config: Mapping[str, Any], generation: Mapping[str, Any] | None, model: Any) -> bool:
    """config, generation: the fields of config.json and generation_config.json (None: there is none), model: a model of
    `transformers` that was made of them. Configurations fill in what is not said, and turn older ways of saying it into
    newer ones: where that makes a difference to the stack, or to where an answer ends, they do not describe it.
    """
    given, made, names = SimpleNamespace(**config), model.config, _Names(model)
    if any(name not in config or config[name] != getattr(made, name) for name in SAID):
        return False
    if config.get(TIED) not in (None, getattr(made, TIED)) or _has_float32(model):
        return False
    try:
        if _flat(describe(given, names, POSITIONS)) != _flat(describe(made, names, POSITIONS)):
            return False
        if _good_for(given) != _good_for(made):
            return False
    except Unsupported:
        return False
    ends = (config if generation is None else generation).get("eos_token_id")
    return ids(ends) == ids(model.generation_config.eos_token_id)


def _has_float32(model: Any) -> bool:
    """Biases of routers, say, which transformers keeps so: at hand, what is not quantized is bfloat16."""
    stored = model.state_dict(keep_vars=True).values()
    return any(tensor.dtype.itemsize > 2 and tensor.is_floating_point() for tensor in stored)


def _good_for(config: Any) -> dict[str | None, int]:
    """Up to which length the tables of each type of layers are good, where that is not any."""
    per_type = fused_families()[config.model_type].fused.rotary_per_layer_type
    given = {kind: rope_parameters(config, kind) for kind in (set(config.layer_types) if per_type else [None])}
    return {
        kind: one.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind, one in given.items() if one["rope_type"] in LENGTH_DEPENDENT
    }  # fmt: skip


class _Name(str):
    """Of a weight, and what is done with its values."""

    def __add__(self, other: float) -> "_Name":
        return _Name(f"({self} + {other})")

    def __truediv__(self, other: float) -> "_Name":
        return _Name(f"{self} / {other}")


class _Names:
    """`engine.stack.Parts` that gives names for weights."""

    def __init__(self, model: Any):
        self._model = model

    def has(self, name: str) -> bool:
        return has_module(self._model, name)

    def linears(self, names: Sequence[str]) -> Any:
        return tuple(names)

    def dense(self, name: str) -> Any:
        return _Name(name)

    def vector(self, name: str) -> Any:
        return _Name(name)

    def head(self) -> Any:
        return "head"

    def outputs(self) -> int:
        return 0

    def experts(self, name: str, gate_up: Sequence[str]) -> list[GatedMlp]:
        return [GatedMlp([_Name(name), *gate_up], [])]

    def numbers(self, values: np.ndarray) -> np.ndarray:
        return values


def _flat(value: Any) -> Any:
    """As something that can be compared."""
    if is_dataclass(value):
        return tuple(_flat(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, list | tuple):
        return tuple(map(_flat, value))
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    return value.name if isinstance(value, Enum) else value
