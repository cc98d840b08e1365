"""A request of the API of responses, put as one of a chat, and what is wrong with one."""

import pytest

from awq_cli.serving.asks import read_chat
from awq_cli.serving.items import NAMES, as_chat
from awq_cli.serving.kept import Kept
from awq_cli.serving.refusals import Refusal
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_responses import WEATHER, needs_kernels, replying  # noqa: F401
from tests.awq_cli.test_serve_tools import folder  # noqa: F401

PART = {"type": "input_text", "text": "b"}
GIVEN = {
    "instructions": "a",
    "input": [
        {"type": "message", "role": "developer", "content": [PART, PART]},
        {"role": "user", "content": "c"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "no"}], "content": None},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "d"}]},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "e"}, {"type": "refusal", "refusal": "f"}],
        },
        {"type": "function_call", "call_id": "1", "name": "x", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "y", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [PART]},
        {"type": "function_call_output", "call_id": "2", "output": "g"},
        {"role": "assistant", "content": "h"},
        {"role": "assistant", "content": "i"},
    ],
    "max_output_tokens": 5,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    "tool_choice": {"type": "function", "name": "x"},
    "top_p": 0.5,
}


def test_a_request_as_one_of_a_chat():
    """Of two system texts few templates take the second; what came of one answer is one message."""

    def text(*texts):
        return [{"type": "text", "text": one} for one in texts]

    calls = [
        {"id": i, "type": "function", "function": {"name": n, "arguments": "{}"}} for i, n in (("1", "x"), ("2", "y"))
    ]
    chat, places = as_chat(GIVEN, Kept())
    assert chat.pop("messages") == [
        {"role": "system", "content": text("a", "\n\n", "b", "b")},
        {"role": "user", "content": text("c")},
        {"role": "assistant", "reasoning_content": ""},
        {"role": "assistant", "reasoning_content": "d", "content": text("e", "f"), "tool_calls": calls},
        {"role": "tool", "content": text("b"), "tool_call_id": "1"},
        {"role": "tool", "content": text("g"), "tool_call_id": "2"},
        {"role": "assistant", "content": text("h")},
        {"role": "assistant", "content": text("i")},
    ]
    assert places == ["instructions", *(f"input[{number}]" for number in (1, 2, 3, 7, 8, 9, 10))]
    assert chat == {
        "max_completion_tokens": 5,
        "logprobs": False,
        "tools": [],
        "tool_choice": {"type": "function", "function": {"name": "x"}},
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "top_p": 0.5,
    }


USER = {"role": "user", "content": "a"}
WRONG = [
    ({"input": []}, "input", "has to be a text, or a list of one item or more"),
    ({"input": [1]}, "input[0]", "has to be an item"),
    ({"input": [USER, {"role": "bot", "content": "a"}]}, "input[1]", "has to have a role"),
    ({"input": [USER, {"role": [], "content": "a"}]}, "input[1]", "has to have a role"),
    ({"input": [{"role": "user"}]}, "input[0]", "has to have a text"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]", "part of type input_image"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content", "no text"),
    ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0]", "is of type computer_call"),
    ({"input": [USER, {"type": "function_call", "name": "x", "arguments": "no"}]}, "input[1].tool_calls[0]", "no JSON"),
    ({"instructions": 1}, "instructions", "has to be a text"),
    ({"conversation": "conv_1"}, "conversation", "name the previous_response_id"),
    ({"background": True}, "background", "not supported"),
    ({"truncation": "auto"}, "truncation", "shorten the input"),
    ({"include": ["x"]}, "include", "has x, which nobody knows"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0]", "is of type code_interpreter"),
    ({"tools": [WEATHER, WEATHER]}, "tools", "two functions by the name of weather"),
    ({"tools": 1}, "tools", "has to be a list"),
    ({"tool_choice": "required"}, "tool_choice", "has to be"),
    ({"text": 1}, "text", "has to be an object"),
    ({"text": {"format": {"type": "no"}}}, "text.format", "has to be of type"),
    ({"reasoning": {"effort": "no"}}, "reasoning.effort", "has to be one of"),
    ({"max_output_tokens": 0}, "max_output_tokens", "has to be a whole number"),
    ({"max_output_tokens": 10**6}, "input", "maximum context length"),
    ({"messages": []}, "messages", "Unrecognized"),
    ({"stream_options": {"x": 1}, "stream": True}, "stream_options", "which nobody knows"),
]


@needs_kernels
@pytest.mark.parametrize("given, parameter, told", WRONG)
def test_what_is_wrong_is_told_by_the_names_of_this_request(given, parameter, told, replying):  # noqa: F811
    refused = replying.post("responses", {"input": "a", **given})
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["param"] == parameter and told in error["message"]
    assert not any(name in error["message"] for name in NAMES if name not in parameter), error


def test_names_of_fields_are_those_of_a_chat():
    """Or what is said of them would not be put into other words."""
    with pytest.raises(Refusal, match="Unrecognized"):
        read_chat({"messages": [], "not_one": 1}, None, None, None)
    for name in NAMES:
        with pytest.raises(Exception) as error:
            read_chat({name: 1}, None, None, None)
        assert "Unrecognized" not in str(error.value)
