"""JSON schemas of requests, as what people mean by them."""

import json
from collections.abc import Iterator
from typing import Any

# What says something of further keys, or of the object as a whole.
OF_KEYS = {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties"}
# Where several schemas hold for one object, none of them can rule out the keys of the others.
TOGETHER = {"allOf", "not", "if", "then", "else", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"}
BESIDE = {"anyOf", "oneOf", "$ref"}
# What does not hold schemas, whatever it looks like.
VALUES = {"enum", "const", "default", "examples", "required"}
BY_NAME = {"properties", "patternProperties", "$defs", "definitions"}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with objects closed that name their properties and say nothing of others.

    By the letter any others may follow, and a small model that is kept to the letter goes on inventing them; people who
    write such a schema do not expect any. Where several schemas hold for one object all stay as they are.
    """
    own = json.loads(json.dumps(schema))
    found = [*_schemas(own)]
    if any(TOGETHER & one.keys() or ("properties" in one and BESIDE & one.keys()) for one in found):
        return schema
    for one in found:
        named, required = one.get("properties"), one.get("required", [])
        if isinstance(named, dict) and isinstance(required, list) and not OF_KEYS & one.keys():
            if all(name in [*named] for name in required):
                one["additionalProperties"] = False
    return own


def _schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """It, and all within."""
    left: list[Any] = [schema]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            yield one
            for word, value in one.items():
                if word not in VALUES:
                    left += value.values() if word in BY_NAME and isinstance(value, dict) else [value]
