"""Damage to files, drawn by a seed: bytes that have tipped, and structures that say something else than they did."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD = (
    None, True, False, 0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308,
    float("nan"), float("inf"),
    "", "x", "\ud800", "a\nb", "x" * 5000, "../../etc/passwd", "llama", "[[1]]", [], {}, [[1]], [None], {"": None},
    {"a": {"b": []}},
)  # fmt: skip
NUMBERS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def damaged_bytes(rng: random.Random, data: bytes, within: int | None = None) -> bytes:
    """One to four changes, in the first `within` bytes if that is given."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _damaged_once(rng, data, min(within or len(data), len(data)))
    return data


def _damaged_once(rng: random.Random, data: bytes, within: int) -> bytes:
    at = rng.randrange(within + 1)
    length = rng.choice((1, 2, 4, 8, 64))
    kind = rng.randrange(7)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        width = rng.choice((1, 2, 4, 8))
        number = rng.choice(NUMBERS) % (1 << 8 * width)
        return data[:at] + number.to_bytes(width, "little") + data[at + width :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + rng.randbytes(length) + data[at:]
    if kind == 4:
        return data[:at] + data[at + length :]
    if kind == 5:
        start = rng.randrange(within + 1)
        return data[:at] + data[start : start + length] + data[at:]
    return data[:at] + bytes(length) + data[at + length :]


def damaged_value(rng: random.Random, value: Any, odd: tuple = ODD) -> Any:
    """One to three changes to what JSON, or a file of scales, holds. The value given stays as it is."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(odd)
        holder, key = rng.choice(places)
        _change(rng, holder, key, rng.choice(places), odd)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) in a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _places(child)


def _change(rng: random.Random, holder: Any, key: Any, other: tuple[Any, Any], odd: tuple) -> None:
    here = holder[key]
    kind = rng.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [here]
    elif kind == 2 and isinstance(here, int | float) and not isinstance(here, bool):
        holder[key] = rng.choice(
            (here + 1, here - 1, here * 2, -here, float(here) if abs(here) < 1e300 else 0, str(here))
        )
    elif kind == 3 and other[1] in (other[0] if isinstance(other[0], dict) else range(len(other[0]))):
        holder[key] = copy.deepcopy(other[0][other[1]])
    elif kind == 4 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "quantization_config", "auto_map", "dtype", f"{key}_"))] = rng.choice(odd)
    elif kind == 5 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(here))
    else:
        holder[key] = copy.deepcopy(rng.choice(odd))


def damaged_json(rng: random.Random, text: bytes) -> bytes:
    """A JSON file that says something else, or is none any more."""
    if rng.random() < 0.2:
        return damaged_bytes(rng, text)
    return json.dumps(damaged_value(rng, json.loads(text))).encode()


# What a recipe tells of the model's layers is most of it, and is read only to be told again.
_TOLD = ("layers", "kinds", "kept", "blocks", "seconds", "size", "versions", "calibration", "options")


def damaged_recipe(rng: random.Random, text: bytes) -> bytes:
    """As `damaged_json`, more often in what is gone by: most of what is merely told is left out first."""
    recipe = json.loads(text)
    for name in _TOLD:
        if name in recipe and rng.random() < 0.9:
            del recipe[name]
    return damaged_json(rng, json.dumps(recipe).encode())


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Another header, of its right length or not; or other bytes in and about it."""
    end = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return damaged_bytes(rng, data, within=rng.choice((8, end, len(data))))
    header = json.dumps(damaged_value(rng, json.loads(data[8:end]))).encode()
    return len(header).to_bytes(8, "little") + header + data[end:]
