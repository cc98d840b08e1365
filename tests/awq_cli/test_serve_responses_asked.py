"""A request of the API of responses, put as one of a chat, and what is wrong with one."""

import json

import pytest

from awq_cli.serving.asks import read_chat
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.responses.asked import NAMES, as_chat
from awq_cli.serving.responses.kept import Kept
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
        {"id": i, "type": "function", "function": {"name": n, "arguments": {}}} for i, n in (("1", "x"), ("2", "y"))
    ]
    chat, places = as_chat(GIVEN, Kept())
    assert chat.pop("messages") == [
        {"role": "system", "content": text("a", "\n\n", "b", "b")},
        {"role": "user", "content": text("c")},
        {"role": "assistant", "reasoning_content": "d", "content": text("e", "f"), "tool_calls": calls},
        {"role": "tool", "content": text("b"), "tool_call_id": "1"},
        {"role": "tool", "content": text("g"), "tool_call_id": "2"},
        {"role": "assistant", "content": text("h")},
        {"role": "assistant", "content": text("i")},
    ]
    assert places == ["instructions", *(f"input[{number}]" for number in (1, 3, 7, 8, 9, 10))]
    assert chat == {
        "max_completion_tokens": 5,
        "logprobs": False,
        "top_logprobs": None,
        "tools": [],
        "tool_choice": {"type": "function", "function": {"name": "x"}},
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "top_p": 0.5,
    }


@pytest.mark.parametrize(
    "more",
    [
        {"top_logprobs": 0},
        {"input": [{"type": None, "role": "user", "content": "a", "phase": None}]},
        {"text": {"format": {"type": "text", "strict": None}}, "reasoning": None, "include": None, "tools": None},
        {"tools": [{"type": "web_search"}], "tool_choice": "auto", "max_tool_calls": 3},
    ],
)
@needs_kernels
def test_what_clients_send_as_well(more, replying):  # noqa: F811
    made = replying.replied("Warm.", **{"input": "a", **more})
    assert made.status_code == 200 and made.json()["output"][0]["content"][0]["text"] == "Warm.", made.text


def test_a_text_behind_calls_is_of_the_same_answer():
    """What tools gave follows the calls."""
    call = {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"}
    said = {"role": "assistant", "content": "I look."}
    given = [USER, call, said, call, {"type": "function_call_output", "call_id": "1", "output": "9"}, said, call]
    messages = as_chat({"input": given}, Kept())[0]["messages"]
    assert [(one["role"], len(one.get("tool_calls", ()))) for one in messages] == [
        ("user", 0), ("assistant", 2), ("tool", 0), ("assistant", 1)
    ]  # fmt: skip


SPACES = [{"type": "namespace", "name": name, "tools": [WEATHER]} for name in ("sea", "sky")]


@needs_kernels
def test_a_name_in_two_spaces(replying):  # noqa: F811
    """The model is shown the two by names of their own; the client gets its own back, and says it again."""
    call = '<tool_call>{"name": "sky__weather", "arguments": {"city": "Rome"}}</tool_call>'
    (made,) = replying.replied(call, tools=SPACES).json()["output"]
    assert (made["name"], made["namespace"]) == ("weather", "sky")
    chat, _ = as_chat({"input": [USER, made], "tools": SPACES}, Kept())
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["sea__weather", "sky__weather"]
    assert chat["messages"][1]["tool_calls"][0]["function"]["name"] == "sky__weather"


@needs_kernels
def test_some_of_the_tools(replying):  # noqa: F811
    """Those alone are shown, and may be called."""
    other = {"type": "function", "name": "now", "parameters": None}
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    asked = {"input": "a", "temperature": 1, "seed": 1, "max_output_tokens": 300}
    made = replying.post("responses", {**asked, "tools": [other, WEATHER], "tool_choice": some}).json()
    alone = replying.post("responses", {**asked, "tools": [WEATHER], "tool_choice": "required"}).json()
    assert made["usage"]["input_tokens"] == alone["usage"]["input_tokens"]
    assert [item["name"] for item in made["output"]] == [item["name"] for item in alone["output"]]
    assert {item["name"] for item in made["output"]} == {"weather"}


USER = {"role": "user", "content": "a"}
WRONG = [
    ({"input": []}, "input", "has to be a text, or a list of one item or more"),
    ({"input": [1]}, "input[0]", "has to be an item"),
    ({"input": [USER, {"role": "bot", "content": "a"}]}, "input[1]", "has to have a role"),
    ({"input": [USER, {"role": [], "content": "a"}]}, "input[1]", "has to have a role"),
    ({"input": [{"role": "user"}]}, "input[0]", "has to have a text"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0]", "part of type input_image"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0]", "of type input_text without"),
    ({"input": [{"type": "computer_call", "id": "x"}]}, "input[0]", "is of type computer_call"),
    ({"input": [USER, {"type": "function_call", "name": "x", "arguments": "no"}]}, "input[1]", "no JSON"),
    ({"instructions": 1}, "instructions", "has to be a text"),
    ({"conversation": "conv_1"}, "conversation", "name the previous_response_id"),
    ({"background": True}, "background", "not supported"),
    ({"truncation": "auto"}, "truncation", "shorten the input"),
    ({"include": ["x"]}, "include", "has x, which nobody knows"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0]", "is of type code_interpreter"),
    ({"tools": [WEATHER, WEATHER]}, "tools", "two functions by the name of weather"),
    ({"tools": 1}, "tools", "has to be a list"),
    ({"tools": [{"type": "function", "name": ["x"]}]}, "tools[0]", "has to have a name"),
    ({"tools": [{"type": "namespace", "tools": [WEATHER]}]}, "tools[0]", "is of type namespace"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice", "has to have a mode"),
    ({"tools": [WEATHER] * 129}, "tools", "up to 128"),
    ({"input": " "}, "input[0].content", "is empty; give some text"),
    ({"input": [USER, {"role": "user", "content": "\ud800"}]}, None, "input[1] is not Unicode text"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "has to have a schema"),
    ({"store": "no"}, "store", "true or false"),
    ({"metadata": [1]}, "metadata", "has to be an object"),
    ({"text": {"foo": 1}}, "text", "has foo, which nobody knows"),
    ({"reasoning": {"foo": 1}}, "reasoning", "has foo, which nobody knows"),
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
    body = json.dumps({"model": replying.name, "input": "a", **given})  # with halves of characters as escapes
    refused = replying.post("responses", body.encode())
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["param"] == parameter and told in error["message"]
    assert not any(name in error["message"] for name in NAMES if name not in str(parameter)), error


def test_names_of_fields_are_those_of_a_chat():
    """Or what is said of them would not be put into other words."""
    with pytest.raises(Refusal, match="Unrecognized"):
        read_chat({"messages": [], "not_one": 1}, None, None, None)
    for name in NAMES:
        with pytest.raises(Exception) as error:
            read_chat({name: 1}, None, None, None)
        assert "Unrecognized" not in str(error.value)
