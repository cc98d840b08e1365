"""From checks to words."""

import math

import pytest

from benchmarks.models.record import Check, Outcome, Record, Report, Way
from benchmarks.models.table import reasons, summary, verdict
from benchmarks.typed import from_json, to_json

RIGHT, WRONG = Check.of("decode", True, [0.0, 2e-4], 0.0), Check.of("decode", True, [0.0, 2e-3], 0.0)


@pytest.mark.parametrize(
    ("exact", "errors", "noise", "right"),
    [
        (True, [0.0, 9e-4], 0.0, True),
        (True, [0.0, 0.0, 1.1e-3], 0.0, False),  # one position is enough
        (False, [0.029, 0.029, 0.5], 0.01, True),  # one token took another expert
        (False, [0.031, 0.031, 0.0], 0.01, False),
        (True, [0.0, math.nan], 0.0, False),
        (False, [0.0, 0.0, math.inf], 0.01, False),
    ],
)
def test_what_is_right(exact, errors, noise, right):
    assert Check.of("decode", exact, errors, noise).right is right


def test_where_tokens_choose_experts_twice_as_much_rounding_is_allowed():
    assert Check.of("decode", False, [0.049], 0.01, experts=True).right
    assert not Check.of("decode", False, [0.051], 0.01, experts=True).right
    assert not Check.of("decode", True, [0.002], 0.01, experts=True).right


def way(awq: str, outcome: Outcome = Outcome.WORKS, error: str | None = None, **more) -> Way:
    return Way(awq, outcome, error, "decode: engine/modules.py:1", **more)


def refused(error: str, awq: str = "none", where: str = "quantize") -> Way:
    return Way(awq, Outcome.REFUSED, error, where)


NO_MAP = refused("no mappings for 'rwkv'", "run")


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        ([way("run", fused=True)], "works, fused"),
        ([way("run"), way("none")], "works"),
        ([NO_MAP, way("none")], "rounding only: no mappings for 'rwkv'"),
        ([NO_MAP, refused("no linears")], "refused: no linears"),
        ([NO_MAP, refused("no tensor x", where="load")], "refused: no tensor x [load]"),
        ([NO_MAP, way("none", Outcome.FAULT, "KeyError: 1")], "FAULT: KeyError: 1 [decode: engine/modules.py:1]"),
        (
            [way("run"), way("none", Outcome.WRONG, checks=(RIGHT, WRONG))],
            "WRONG: awq none: decode 0.002",
        ),
        (
            [way("run", Outcome.WRONG, checks=(Check.of("score", False, [math.nan], 0.01),))],
            "WRONG: awq run: score not finite",
        ),
    ],
)
def test_a_row_in_words(ways, said):
    assert verdict(Record("rwkv", ways=tuple(ways))) == said


def test_a_fault_with_awq_is_not_hidden_by_rounding_that_works():
    record = Record("x", ways=(way("run", Outcome.FAULT, "KeyError: 1"), way("none")))
    assert verdict(record).startswith("FAULT: KeyError: 1")


def test_no_model():
    assert verdict(Record("x", unbuilt="a drafter")) == "no model: a drafter"


def test_reasons_are_counted_whatever_the_names_in_them():
    errors = {
        "a": "/tmp/x1/float is no LM (it names AForCausalLM)",
        "b:wrapper": "/tmp/x2/float is no LM (it names BForCausalLM)",
        "qwen3": "model.layers.0.mlp.gate: the qwen3 format differs",
    }
    records = [
        *(Record(name, ways=(refused(error),)) for name, error in errors.items()),
        Record("d", ways=(way("none"),)),
    ]
    assert reasons(records, "none") == {
        "refused: float is no LM (it names ClassForCausalLM)": ["a", "b:wrapper"],
        "refused: MODULE: the TYPE format differs": ["qwen3"],
    }
    assert reasons(records, "run") == {}
    assert summary(records) == {"refused": 3, "rounding only": 1}


def test_a_report_comes_back_from_json():
    ways = (way("run", checks=(RIGHT, Check.of("score", False, [math.nan], 0.1)), notes=("a",)), NO_MAP)
    report = Report({"torch": "2"}, 1.5, (Record("x", ways=ways, seconds=2.0), Record("y", unbuilt="z")))
    assert from_json(Report, to_json(report)) == report and "NaN" not in to_json(report)
