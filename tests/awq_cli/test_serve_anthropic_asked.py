"""A request of Anthropic's API, put as one of a chat of OpenAI's, and what is wrong with one."""

import pytest

from awq_cli.serving.anthropic.asked import as_chat
from awq_cli.serving.refusals import Refusal
from tests.awq_cli.test_serve_anthropic import USER, WEATHER, needs_kernels, replying  # noqa: F401
from tests.awq_cli.test_serve_forms import checkpoint as pets_checkpoint  # noqa: F401
from tests.awq_cli.test_serve_tools import folder  # noqa: F401

CALL = {"type": "tool_use", "id": "1", "name": "x", "input": "no"}
WRONG = [
    ({"max_tokens": None}, "max_tokens", "has to be given"),
    ({"max_tokens": 0}, "max_tokens", "a whole number"),
    ({"messages": []}, "messages", "a list of one message"),
    ({"messages": [1]}, "messages[0]", "has to have a role"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]", "has to have a role"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "has to have content"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0]", "a block of type image"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages[0]", "is empty"),
    ({"messages": [USER, {"role": "assistant", "content": [{**CALL, "input": {}}]}]}, "messages[1]", "has to follow"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0]", "without a tool_use_id"),
    ({"messages": [USER, {"role": "assistant", "content": [CALL]}, USER]}, "messages[1]", "JSON"),
    ({"system": 1}, "system", "has to be a text"),
    ({"system": [{"type": "image"}]}, "system", "a block of type image"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]", "is of type bash_20250124"),
    ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice", "has to be of type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "among the tools"),
    ({"thinking": {"type": "hard"}}, "thinking", "has to have a type"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format", "of type json_schema"),
    ({"stop_sequences": [""]}, "stop_sequences", "none of them empty"),
    ({"top_p": 2}, "top_p", "0 to 1"),
    ({"n": 2}, "n", "Extra inputs"),
]


@needs_kernels
@pytest.mark.parametrize("given, field, told", WRONG)
def test_what_is_wrong_is_told_in_the_shape_of_this_api(given, field, told, replying):  # noqa: F811
    answer = replying.post("messages", {"max_tokens": 5, "messages": [USER], **given})
    error = answer.json()
    assert answer.status_code == 400 and error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    message = error["error"]["message"]
    assert told in message and message.startswith(field), message


def test_what_a_chat_is_told():
    given = {
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=7f3a;"},
            {"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"},
        ],
        "messages": [
            USER,
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "c", "signature": "s"}, {"type": "redacted_thinking", "data": "?"},
                {"type": "text", "text": "d"}, {"type": "tool_use", "id": "1", "name": "x", "input": {"e": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "text", "text": "f"}, {"type": "tool_result", "tool_use_id": "1", "is_error": True},
            ]},
            {"role": "system", "content": "g"},
            USER,
        ],
        "max_tokens": 5, "thinking": {"type": "disabled"},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    }  # fmt: skip
    chat, places = as_chat(given)
    call = {"id": "1", "type": "function", "function": {"name": "x", "arguments": {"e": 1}}}
    assert chat["messages"] == [
        {"role": "system", "content": "a\nb"},
        USER,
        {"role": "assistant", "content": "d", "reasoning_content": "c", "tool_calls": [call]},
        {"role": "tool", "content": "Error: ", "tool_call_id": "1", "name": "x"},
        {"role": "user", "content": "f"},
        {"role": "system", "content": "g"},
        USER,
    ]
    assert places == ["system", *(f"messages[{number}]" for number in (0, 1, 2, 2, 3, 4))]
    assert chat["tools"] == [] and chat["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(Refusal, match="Extra inputs"):
        as_chat({"messages": [USER], "container": "x"})


def test_messages_of_one_role_are_one_turn():
    """Templates there are that refuse two."""
    used = {"type": "tool_use", "id": "1", "name": "x", "input": {}}
    gave = {"type": "tool_result", "tool_use_id": "1", "content": "9"}
    chat, places = as_chat(
        {
            "messages": [
                USER,
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": [{"type": "text", "text": "c"}, used]},
                {"role": "assistant", "content": [used]},
                {"role": "user", "content": [gave]},
                {"role": "user", "content": [gave, {"type": "text", "text": "d"}]},
                {"role": "user", "content": "e"},
                {"role": "assistant", "content": "f"},
                {"role": "assistant", "content": "g"},
            ]
        }
    )
    assert [one.get("name") for one in chat["messages"] if one["role"] == "tool"] == ["x", "x"]
    told = [(one["role"], one["content"], len(one.get("tool_calls", ()))) for one in chat["messages"]]
    assert told == [
        ("user", "How warm is it?\nb", 0), ("assistant", "c", 2), ("tool", "9", 0), ("tool", "9", 0),
        ("user", "d\ne", 0), ("assistant", "fg", 0),
    ]  # fmt: skip
    assert places == [f"messages[{number}]" for number in (0, 2, 4, 5, 5, 7)] and chat["messages"][-1]["prefix"]


@pytest.mark.parametrize(
    "given, shown",
    [
        ({}, {"enable_thinking": False}),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
        ({"output_config": {"effort": "low"}}, {"enable_thinking": False, "reasoning_effort": "low"}),
    ],
)
def test_thoughts_are_asked_for(given, shown):
    assert as_chat({"messages": [USER], **given})[0]["chat_template_kwargs"] == shown


def test_an_answer_that_has_not_begun_is_none():
    assert as_chat({"messages": [USER, {"role": "assistant", "content": []}]})[0]["messages"] == [USER]


def test_what_nobody_asked_a_tool_for():
    """It goes to the template all the same, without a name."""
    gave = {"type": "tool_result", "tool_use_id": "another", "content": "9"}
    messages = as_chat({"messages": [USER, {"role": "user", "content": [gave]}]})[0]["messages"]
    assert messages[-1] == {"role": "tool", "content": "9", "tool_call_id": "another"}
