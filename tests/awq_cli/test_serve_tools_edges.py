"""Tools at the edges: marks in thoughts, halves of characters, schemas that say little."""

import openai
import pytest

from qlinear.backends.cpu import native
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_tools import ROME, called, folder, speaking, together  # noqa: F401

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


def test_a_thought_that_mentions_a_call(speaking):  # noqa: F811
    said = f"I may write <tool_call> now. {ROME}"
    (choice,) = speaking.ask(said).choices
    assert choice.message.content == "I may write <tool_call> now." and called(choice.message) == [
        ("weather", {"city": "Rome"})
    ]


def test_half_a_character_in_an_argument(speaking):  # noqa: F811
    said = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d"}}</tool_call>'
    for answer in (speaking.ask(said).choices[0].message, None):
        calls = called(answer) if answer else together(speaking.ask(said, stream=True))[1]
        assert calls == [("weather", {"city": "\ud83d"})]


def test_schemas_that_say_little(speaking):  # noqa: F811
    """Without a type arguments are an object all the same; what refers to itself as a whole is refused."""
    loose = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}
    how = dict(temperature=1, max_tokens=200, tool_choice={"type": "function", "function": {"name": "f"}})
    for seed in range(3):
        ((name, arguments),) = called(speaking.ask(tools=[loose], seed=seed, **how).choices[0].message) or [("f", {})]
        assert name == "f" and type(arguments) is dict
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    with pytest.raises(openai.BadRequestError, match="refers to itself as a whole"):
        tools = [{"type": "function", "function": {"name": "f", "parameters": tree}}]
        speaking.ask(tools=tools, tool_choice="required")
