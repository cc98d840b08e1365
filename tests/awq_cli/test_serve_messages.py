"""Messages of a request, as chat templates are given them."""

import pytest

from awq_cli.serving.messages import read_messages
from awq_cli.serving.refusals import Refusal

CALL = {"id": "a1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
TOLD_CALL = {"id": "a1", "type": "function", "function": {"name": "now", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "template, message, told",
    [
        ("", {"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ("", {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         {"role": "user", "content": "ab"}),
        ("", {"role": "user", "content": "a", "name": "Bob"}, {"role": "user", "content": "a"}),
        ("{{ m.name }}", {"role": "user", "content": "a", "name": "Bob"},
         {"role": "user", "content": "a", "name": "Bob"}),
        ("m.tool_plan", {"role": "assistant", "content": "a", "tool_plan": "b", "refusal": None, "annotations": []},
         {"role": "assistant", "content": "a", "tool_plan": "b"}),
        ("tools", {"role": "assistant", "content": None, "tool_calls": [CALL]},
         {"role": "assistant", "content": "", "tool_calls": [TOLD_CALL]}),
        ("", {"role": "assistant", "content": None, "refusal": None}, {"role": "assistant", "content": ""}),
        ("", {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
         {"role": "assistant", "content": "no"}),
        ("", {"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
        ("", {"role": "assistant", "content": "a", "reasoning": "b"},
         {"role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": "b"}),
        ("m.thinking", {"role": "assistant", "reasoning_content": "b"},
         {"role": "assistant", "content": "", "reasoning_content": "b", "reasoning": "b", "thinking": "b"}),
        ("m.thinking", {"role": "assistant", "content": "a", "reasoning_content": "b"},
         {"role": "assistant", "content": "a", "reasoning_content": "b", "reasoning": "b"}),
        ("tool_call_id", {"role": "tool", "content": "9", "tool_call_id": "a1", "name": "now"},
         {"role": "tool", "content": "9", "tool_call_id": "a1"}),
    ],
)  # fmt: skip
def test_what_a_template_is_given(template, message, told):
    """Whatever it names, as the client says it; thoughts by each of their names."""
    assert read_messages({"messages": [message]}, template) == [told]


@pytest.mark.parametrize(
    "message, why",
    [
        ({"role": "user", "content": None}, "has to be a text"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}, "no text"),
        ({"role": "function", "content": "a"}, "has to have a role"),
        ({"role": "assistant", "content": "a", "audio": {"id": "b"}}, "has audio"),
        ({"role": "assistant", "content": "a", "function_call": {"name": "now"}}, "has function_call"),
        ({"role": "tool", "content": "9"}, "does not know"),
        ("a", "has to have a role"),
    ],
)
def test_what_is_refused(message, why):
    with pytest.raises(Refusal, match=why):
        read_messages({"messages": [message]}, "")
