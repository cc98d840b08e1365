"""Dataclasses to JSON and back, every field checked; one with a default may be missing. Standard library only."""

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any, indent: int | None = None) -> str:
    """A dataclass as JSON; its enums are of strings."""
    return json.dumps(asdict(value), indent=indent)


def from_json(kind: type[T], text: str) -> T:
    """What `to_json` wrote of a `kind`. Raises `ValueError` for anything else."""
    return typed(kind, json.loads(text))


def typed(kind: Any, value: Any) -> Any:
    """A value of JSON as a `kind`: a dataclass, a tuple of one kind, a dict, an enum or a plain type; or None."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        (other,) = (part for part in parts if part is not NoneType)
        return None if value is None else typed(other, value)
    if is_dataclass(kind):
        return _dataclass(kind, value)
    if origin is tuple:
        return tuple(typed(parts[0], item) for item in _checked(list, value))
    if origin is dict:
        return {typed(parts[0], name): typed(parts[1], item) for name, item in _checked(dict, value).items()}
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    return _checked(kind, value)


def _dataclass(kind: Any, value: Any) -> Any:
    wanted = {field.name for field in fields(kind)}
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    different = wanted ^ _checked(dict, value).keys()
    if different - optional:
        raise ValueError(f"{kind.__name__} has other fields: {', '.join(sorted(different))}")
    hints = get_type_hints(kind)
    return kind(**{name: typed(hints[name], value[name]) for name in wanted & value.keys()})


def _checked(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value
