"""Arguments that a model writes as they are, without quotes: what they are by the schema of their tool."""

import json
from collections.abc import Mapping
from typing import Any

# Of each tool, by its name, its parameters as a JSON schema.
Tools = Mapping[str, Mapping[str, Any]]

MOST_STEPS = 50  # from a schema to those that it is made of


def typed(text: str, key: str, parameters: Mapping[str, Any] | None) -> Any:
    """The text itself where the schema lets a text stand there, or it is no JSON; else the value that it writes."""
    root = parameters or {}
    properties = root.get("properties")
    kinds = _kinds(properties.get(key) if isinstance(properties, Mapping) else None, root)
    if "string" in kinds:
        return None if "null" in kinds and text.strip() == "null" else text
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text


def _kinds(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """Types of JSON that a schema admits, as far as it names some."""
    kinds: set[str] = set()
    left, steps = [schema], 0
    while left and steps < MOST_STEPS:
        one, steps = left.pop(), steps + 1
        if not isinstance(one, Mapping):
            continue
        told = one.get("type")
        kinds |= {kind for kind in (told if isinstance(told, list) else [told]) if isinstance(kind, str)}
        values = one["enum"] if isinstance(one.get("enum"), list) else []
        values = [*values, one["const"]] if "const" in one else values
        kinds |= {"string"} if any(isinstance(value, str) for value in values) else set()
        kinds |= {"null"} if None in values else set()
        for word in ("anyOf", "oneOf", "allOf"):
            left += one[word] if isinstance(one.get(word), list) else []
        left.append(_referred(one.get("$ref"), root))
    return kinds


def _referred(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a reference within the schema is to; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = root
    for part in reference[2:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
