"""Requests out of options: a field of a request is an option of the same name, or a dataclass of such fields."""

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any


def options_of(request: type) -> set[str]:
    """The names of the options that a request understands."""
    return {name for part in fields(request) for name in _names(part)}


def build(request: type, values: dict[str, Any]) -> Any:
    """The request that the values of all options make."""
    return request(**{part.name: _value(part, values) for part in fields(request)})


def _names(part: Field) -> Iterator[str]:
    """Of a dataclass, all of its fields, or those that the field's metadata names as its `options`."""
    if is_dataclass(part.type):
        yield from part.metadata.get("options") or options_of(part.type)
    else:
        yield part.name


def _value(part: Field, values: dict[str, Any]) -> Any:
    if not is_dataclass(part.type):
        return values[part.name]
    return part.type(**{name: values[name] for name in _names(part)})
