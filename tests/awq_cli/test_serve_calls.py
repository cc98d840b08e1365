"""Calls of tools in answers, in each form that models were taught, however the answer is cut into pieces."""

import json

import pytest

from awq_cli.serving.calls import FORMS, Call, CallReader, JsonReader, calls_in, form_of

MARKED, PHI, MISTRAL, LLAMA = FORMS
TOOLS = {
    "weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "kinds": {"type": "array"}}},
    "now": {"properties": {}},
}


def call(name: str, **arguments) -> Call:
    return Call(name, json.dumps(arguments, ensure_ascii=False))


PARIS, NOW = call("weather", city="Paris", days=3), call("now")
IN_JSON = '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}'
CASES = {
    "hermes": (MARKED, f"<tool_call>\n{IN_JSON}\n</tool_call>", "", [PARIS]),
    "after a text": (MARKED, f"I look.\n\n<tool_call>{IN_JSON}</tool_call>\n", "I look.", [PARIS]),
    "two": (
        MARKED, f'<tool_call>{IN_JSON}</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>', "", [PARIS, NOW]
    ),
    "a text behind": (MARKED, f"<tool_call>{IN_JSON}</tool_call>\nDone < it", "\nDone < it", [PARIS]),
    "no end": (MARKED, f"So: <tool_call>\n{IN_JSON}", "So:", [PARIS]),
    "cut": (MARKED, "So: <tool_call>\n{'name'", "So: <tool_call>\n{'name'", []),
    "no call": (MARKED, "<tool_call>what?</tool_call>.", "<tool_call>what?</tool_call>.", []),
    "no mark": (MARKED, "1 < 2 <tool_ca and more \n", "1 < 2 <tool_ca and more \n", []),
    "a list": (MARKED, f'<tool_call>[{IN_JSON}, {{"name": "now", "arguments": {{}}}}]</tool_call>', "", [PARIS, NOW]),
    "arguments in a text": (
        MARKED, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>',
        "", [PARIS],
    ),
    "a line end in a text": (
        MARKED, '<tool_call>{"name": "weather", "arguments": {"city": "New\nYork"}}</tool_call>', "",
        [call("weather", city="New\nYork")],
    ),
    "qwen3-coder": (
        MARKED, "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n<parameter=kinds>\n[1, \"x\"]\n</parameter>\n</function>\n</tool_call>", "",
        [call("weather", city="12", days=3, kinds=[1, "x"])],
    ),
    "lines": (
        MARKED, "<tool_call><function=weather>\n<parameter=city>\na\n\n b\n</parameter>\n</function></tool_call>", "",
        [call("weather", city="a\n\n b")],
    ),
    "glm": (
        MARKED, "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>", "", [PARIS],
    ),
    "glm without arguments": (MARKED, "<tool_call>now\n</tool_call>", "", [NOW]),
    "phi": (PHI, f"<|tool_call|>[{IN_JSON}]<|/tool_call|>", "", [PARIS]),
    "granite": (PHI, f"<|tool_call|>[{IN_JSON}]", "", [PARIS]),
    "mistral": (MISTRAL, '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "VvvODy9mT"}]', "", [NOW]),
    "mistral, later": (
        MISTRAL, 'Yes. [TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now[CALL_ID]a1[ARGS]{}', "Yes.",
        [PARIS, NOW],
    ),
    "llama": (LLAMA, '{"name": "weather", "parameters": {"city": "Paris", "days": 3}}', "", [PARIS]),
    "llama, two": (
        LLAMA, f'\n\n{IN_JSON}; {{"name": "now", "parameters": {{}}}}', "", [PARIS, NOW]
    ),
    "llama, marked": (LLAMA, f"<|python_tag|>{IN_JSON}", "", [PARIS]),
    "llama, JSON": (LLAMA, ' {"name": "Ann", "parameters": {}}', ' {"name": "Ann", "parameters": {}}', []),
    "llama, a text": (LLAMA, "It is { warm }.", "It is { warm }.", []),
    "llama, code": (LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    "unicode": (
        MARKED, '<tool_call>{"name": "weather", "arguments": {"city": "K\u00f6ln"}}</tool_call>', "",
        [call("weather", city="K\u00f6ln")],
    ),
}  # fmt: skip


def read(reader, pieces):
    found = [reader.add(piece) for piece in pieces] + [reader.end()]
    return "".join(text for text, _ in found), [call for _, calls in found for call in calls]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("case", CASES)
def test_calls_and_text_are_told_apart(case, size):
    form, answer, text, calls = CASES[case]
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    assert read(CallReader(form, TOOLS), pieces) == (text, calls)


def test_text_is_not_held_back_without_need():
    reader = CallReader(MARKED, TOOLS)
    assert reader.add("I see. ") == ("I see.", []) and reader.add("And") == (" And", [])
    assert reader.add(" <") == ("", []) and reader.add("b>") == (" <b>", [])
    llama = CallReader(LLAMA, TOOLS)
    assert llama.add("\n") == ("", []) and llama.add("It") == ("\nIt", []) and llama.add(" {") == (" {", [])


def test_one_call_is_all_where_no_more_are_wanted():
    reader = CallReader(MARKED, TOOLS, single=True)
    both = f"<tool_call>{IN_JSON}</tool_call><tool_call>{IN_JSON}</tool_call>"
    assert read(reader, [both]) == ("", [PARIS]) and reader.over
    listed = CallReader(PHI, TOOLS, single=True)
    assert read(listed, [f"<|tool_call|>[{IN_JSON}, {IN_JSON}]<|/tool_call|>"]) == ("", [PARIS]) and listed.over
    llama = CallReader(LLAMA, TOOLS, single=True)
    assert read(llama, [IN_JSON, ";", IN_JSON]) == ("", [PARIS])


def test_an_answer_that_is_kept_to_calls():
    reader = JsonReader(lambda text: calls_in(text, TOOLS))
    assert read(reader, [f"[{IN_JSON}", ', {"name": "now", "arguments": {}}]']) == ("", [PARIS, NOW])
    assert read(JsonReader(lambda text: calls_in(text, TOOLS)), [f"[{IN_JSON}"]) == (f"[{IN_JSON}", [])


@pytest.mark.parametrize(
    "body", ["", "x", "{}", "[]", "[1]", '{"name": 1}', '{"name": "now", "arguments": [1]}', "now[ARGS]", "[" * 10**5,
             '{"name": "now"} x', "nothing\n", "<function=>", "now[ARGS]{} {}"]
)  # fmt: skip
def test_what_is_no_call(body):
    assert calls_in(body, TOOLS) == []


@pytest.mark.parametrize(
    "template, form",
    [
        ("{% if tools %}<tool_call>{% endif %}", MARKED),
        ('{% if tools %}{"name": function name, "parameters": dictionary of argument name{% endif %}', LLAMA),
        ("{% if tools is not none %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% for tool in tools %}<|tool_call|>{% endfor %}", PHI),
        ("{% for message in messages %}<tool_call>{% endfor %}", None),
        ("{% if tools %}call what you like{% endif %}", None),
        ("", None),
    ],
)
def test_a_template_names_the_form(template, form):
    assert form_of(template) == form
