"""Dataclasses come back from JSON as they were, or not at all."""

import json
from dataclasses import dataclass
from enum import StrEnum

import pytest

from benchmarks.typed import from_json, to_json


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    colour: Colour
    inner: tuple[Inner, ...]
    rates: dict[Colour, float]
    note: str | None


@dataclass(frozen=True)
class Later:
    share: float
    added: int | None = None


WHOLE = Outer("a", 3, Colour.RED, (Inner(0.5), Inner(2.0)), {Colour.RED: 1.5}, None)
TEXT = (
    '{"name": "a", "count": 3, "colour": "red", "inner": [{"share": 0.5}, {"share": 2.0}], '
    '"rates": {"red": 1.5}, "note": null}'
)


def test_there_and_back():
    assert to_json(WHOLE) == TEXT
    back = from_json(Outer, TEXT)
    assert back == WHOLE and back.colour is Colour.RED and next(iter(back.rates)) is Colour.RED


def test_a_whole_number_is_a_float_too():
    share = from_json(Inner, '{"share": 2}').share
    assert share == 2.0 and type(share) is float


def test_what_was_written_before_a_field_was_added():
    assert from_json(Later, '{"share": 2.0}') == Later(2.0)
    assert from_json(Later, '{"share": 2.0, "added": 3}') == Later(2.0, 3)
    for wrong in ('{"added": 3}', '{"share": 2.0, "other": 3}', '{"share": 2.0, "added": "3"}'):
        with pytest.raises(ValueError):
            from_json(Later, wrong)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"count": "3"}, "'3' is no int"),
        ({"count": True}, "True is no int"),
        ({"colour": "blue"}, "'blue' is not a valid Colour"),
        ({"inner": [{"shares": 1.0}]}, "Inner has other fields: share, shares"),
        ({"inner": {}}, "{} is no list"),
        ({"rates": {"red": "x"}}, "'x' is no float"),
        ({"note": 1}, "1 is no str"),
        ({"more": 1}, "Outer has other fields: more"),
    ],
)
def test_anything_else_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        from_json(Outer, json.dumps({**json.loads(TEXT), **changes}))
