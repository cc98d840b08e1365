"""Schemas that say nothing of further keys."""

import copy
import json

import pytest

from awq_cli.serving.schemas import closed
from qlinear.backends.cpu import native
from tests.awq_cli.test_serve_forms import ask, checkpoint, pets  # noqa: F401

NAME = {"type": "object", "properties": {"name": {"type": "string"}}}
SHUT = NAME | {"additionalProperties": False}
OF_TWO = {"a": NAME, "if": NAME, "properties": NAME}


@pytest.mark.parametrize(
    "schema, made",
    [
        (NAME, SHUT),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        ({"type": "array", "items": NAME}, {"type": "array", "items": SHUT}),
        ({"anyOf": [NAME, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
        ({"$ref": "#/$defs/a", "$defs": OF_TWO}, {"$ref": "#/$defs/a", "$defs": dict.fromkeys(OF_TWO, SHUT)}),
        ({"properties": OF_TWO}, {"properties": dict.fromkeys(OF_TWO, SHUT), "additionalProperties": False}),
        ({"additionalProperties": NAME}, {"additionalProperties": SHUT}),
        (
            {"properties": {"a": {"enum": [NAME]}}},
            {"properties": {"a": {"enum": [NAME]}}, "additionalProperties": False},
        ),
    ],
)
def test_objects_that_name_their_properties_have_no_others(schema, made):
    before = copy.deepcopy(schema)
    assert closed(schema) == made and schema == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        NAME | {"additionalProperties": True},
        NAME | {"patternProperties": {"^x": {}}},
        NAME | {"required": ["name", "other"]},
        NAME | {"minProperties": 3},
        NAME | {"required": True},
        NAME | {"required": [["name"]]},
        {"properties": 3},
        {"properties": {"a": 3}, "additionalProperties": None},
        {"allOf": [NAME, NAME]},
        {"properties": {"a": NAME, "b": {"allOf": [{"$ref": "#/properties/a"}, {"properties": {"c": {}}}]}}},
        NAME | {"anyOf": [{"properties": {"b": {}}}]},
        NAME | {"if": {"properties": {"name": {"const": "a"}}}, "then": {"required": ["b"]}},
    ],
)
def test_what_others_may_belong_to_stays(schema):
    assert closed(schema) == schema


@pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
def test_a_model_that_knows_nothing_invents_none(pets):  # noqa: F811
    schema = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
    for number in range(10):
        form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema}}
        assert json.loads(ask(pets, number, form).choices[0].message.content) in ({"age": 1}, {"age": 2})
