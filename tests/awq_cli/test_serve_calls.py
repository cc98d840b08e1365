"""Calls of tools in answers, in each form that models were taught, however the answer is cut into pieces."""

import time

import pytest

from awq_cli.serving.bodies import leading_calls, listed_calls, named_call
from awq_cli.serving.calls import FORMS, CallReader, JsonReader, form_of
from tests.awq_cli import notations
from tests.awq_cli.notations import IN_JSON, NOW, PARIS, TOOLS, call

MARKED, PHI, MISTRAL, LLAMA = FORMS[:4]
CASES = {f"in a notation, {name}": case for name, case in notations.CASES.items()} | {
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


THOUGHT = f"<think>I should use <tool_call> here.</think>\n<tool_call>\n{IN_JSON}\n</tool_call>"
TOLD = '{"name": "weather", "arguments": {"city": "</tool_call> and <tool_call>"}}'
# Marks that are only mentioned, and ends that are missing.
CASES |= {
    "in a thought": (MARKED, THOUGHT, "<think>I should use <tool_call> here.</think>", [PARIS]),
    "no end between": (MARKED, f'<tool_call>{IN_JSON}\n<tool_call>{{"name": "now"}}</tool_call>', "", [PARIS, NOW]),
    "granite, two": (PHI, f'<|tool_call|>[{IN_JSON}]<|tool_call|>[{{"name": "now"}}]', "", [PARIS, NOW]),
    "in a text": (MARKED, f"<tool_call>{TOLD}</tool_call>", "", [call("weather", city="</tool_call> and <tool_call>")]),
    "in a text of mistral's": (
        MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "say [TOOL_CALLS]"}', "", [call("weather", city="say [TOOL_CALLS]")]
    ),
    "a text behind mistral's": (MISTRAL, f"[TOOL_CALLS] [{IN_JSON}]\n\nDone.", "Done.", [PARIS]),
    "one brace too many": (MARKED, f"<tool_call>{IN_JSON}}}</tool_call>", "}", [PARIS]),
    "other tools in a value": (
        MARKED, "<tool_call>weather<arg_key>city</arg_key><arg_value>use <function=x> here</arg_value></tool_call>", "",
        [call("weather", city="use <function=x> here")],
    ),
    "never one": (MARKED, "<tool_call>{a</tool_call> b <tool_call>c", "<tool_call>{a</tool_call> b <tool_call>c", []),
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
    whole = f'[{IN_JSON}, {{"name": "now", "arguments": {{}}}}]'
    for size in (1, 7, 1000):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert read(JsonReader(listed_calls), pieces) == ("", [PARIS, NOW])
    cut = f'[{IN_JSON}, {{"name": "no'
    assert read(JsonReader(listed_calls), [cut]) == ("", [PARIS])  # what is whole of it
    assert read(JsonReader(listed_calls), ['[{"name": "no']) == ('[{"name": "no', [])
    assert named_call("now", ' {"a": 1} ') == [call("now", a=1)]
    for wrong in ("", "[1]", '{"a": ', '{"a": 1} x', '{"a": 1e999}'):
        assert named_call("now", wrong) == []


BODIES = notations.BODIES | {
    "what?": None, "": None, "x": None, "{}": None, "[]": None, "[1]": None, '{"name": 1}': None,
    '{"name": "now", "arguments": [1]}': None, "now[ARGS]": None, "[" * 10**5: None, "nothing\n": None,
    "<function=>": None, "<function=now": None, '{"name": "now", "arguments": {"x": NaN}}': None,
    '{"name": "now", "arguments": {"x": 1e999}}': None, '{"name": "now", "arguments": {"x": -Infinity}}': None,
    '{"name": "now"} x': ([NOW], "x"), "now[ARGS]{} {}": ([NOW], " {}"), "now{}": ([NOW], ""), " now ": ([NOW], ""),
    '{"name": "now"}\n{"name": 1}': ([NOW], '{"name": 1}'),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:20])
def test_what_a_text_begins_with(body):
    found = leading_calls(body, TOOLS)
    assert (found and (found.calls, found.rest)) == BODIES[body]


def test_what_is_nested_too_deep_is_no_call():
    """At some depth JSON is read and cannot be written again."""
    for depth in range(1, 1500):
        for body in (f"now<arg_key>x</arg_key><arg_value>{'[' * depth}{']' * depth}</arg_value>",
                     f'{{"name": "now", "arguments": {{"x": {"[" * depth}{"]" * depth}}}}}'):  # fmt: skip
            found = leading_calls(body, TOOLS)
            assert found is None or (found.rest == "" and len(found.calls) == 1)


def test_half_a_character_is_escaped():
    (made,) = leading_calls('{"name": "now", "arguments": {"x": "\\ud83d"}}', TOOLS).calls
    assert made.arguments == '{"x": "\\ud83d"}' and made.arguments.encode()


SCHEMA = {
    "properties": {
        "zip": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "code": {"type": ["string", "null"]},
        "kind": {"enum": ["1", "2"]}, "one": {"const": "7"}, "referred": {"$ref": "#/$defs/Text"},
        "count": {"type": "integer"}, "maybe": {"type": ["integer", "null"]}, "looped": {"$ref": "#/$defs/Loop"},
    },
    "$defs": {"Text": {"type": "string"}, "Loop": {"$ref": "#/$defs/Loop"}},
}  # fmt: skip


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("zip", "90210", "90210"), ("zip", "null", None), ("code", "true", "true"), ("kind", "1", "1"),
        ("one", "7", "7"), ("referred", "[1]", "[1]"), ("count", "3", 3), ("count", "three", "three"),
        ("maybe", "null", None), ("maybe", "4", 4), ("looped", "5", 5), ("unknown", "5;", "5;"), ("unknown", "5", 5),
        ("unknown", '{"a": [1]}', {"a": [1]}), ("count", "null", None),
        ("zip", "a = '</function>'", "a = '</function>'"),
        ("zip", "x\n<parameter=y> in it", "x\n<parameter=y> in it"), ("zip", "use <tool_call>", "use <tool_call>"),
    ],
)  # fmt: skip
def test_arguments_without_quotes_are_what_the_schema_says(key, text, value):
    tools = {"f": SCHEMA}
    coder = f"<function=f>\n<parameter={key}>\n{text}\n</parameter>\n<parameter=last>\nx\n</parameter>\n</function>"
    glm = (
        f"f\n<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n<arg_key>last</arg_key>\n<arg_value>x</arg_value>"
    )
    for body in (coder, glm):
        found = leading_calls(body, tools)
        assert (found.calls, found.rest) == ([call("f", **{key: value, "last": "x"})], "")


def test_a_mention_does_not_hold_the_stream():
    reader = CallReader(MARKED, TOOLS)
    assert reader.add("Use <tool_call> to") == ("Use <tool_call> to", [])
    assert reader.add(" <tool_call>now") == ("", []) and reader.add("here it is") == (" <tool_call>nowhere it is", [])


@pytest.mark.parametrize(
    "part",
    ["<arg_key>", "</arg_key><arg_value>", "<arg_key>a</arg_key>", "<function=", "<function=a>", "<parameter=", "{",
     "[", "</tool_call>", "<tool_call>", '<tool_call>{"', "<tool_call>now", "now[ARGS]", ' "', "\n", "</parameter>",
      "<function=now><parameter=a>x</parameter>", "<tool_call>[</tool_call>", "[CALL_ID]", "<tool_call><function=now>",
     "call:now{", "call:now{a:", '<|"|>', "{a:", "now(", "[now(a=", "'", '<|tool_call>call:now{a:<|"|><tool_call|>',
     "<|tool_call_start|>[now(a='<|tool_call_end|>", "now(),", "\\"],
)  # fmt: skip
@pytest.mark.parametrize("form", [*FORMS[:5], FORMS[6]], ids=lambda form: form.begin)
def test_no_answer_takes_long(form, part):
    """As long as one may be, whatever it repeats, token by token."""
    begun = time.process_time()
    for head in ("", form.begin, f"{form.begin}<function=now><parameter=a>", f"{form.begin}weather<arg_key>" * 500):
        reader = CallReader(form, TOOLS)
        pieces = [head, *[part] * (10_000 // len(part))]
        text = "".join(reader.add(piece)[0] for piece in pieces) + reader.end()[0]
        assert len(text) <= sum(map(len, pieces))
    assert time.process_time() - begun < 8  # a fraction here; minutes where each mark is looked for from each other


@pytest.mark.parametrize(
    "template, form",
    [
        ("{% if tools %}<tool_call>{% endif %}", MARKED),
        ('{% if tools %}{"name": function name, "parameters": dictionary of argument name{% endif %}', LLAMA),
        ("{% if tools is not none %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% for tool in tools %}<|tool_call|>{% endfor %}", PHI),
        ("{% for message in messages %}<tool_call>{% endfor %}", None),
        *notations.TEMPLATES,
        ("<|tool_call_start|>", None),
        ("{% if tools %}call what you like{% endif %}", None),
        ("", None),
    ],
)
def test_a_template_names_the_form(template, form):
    assert form_of(template) == form


def test_special_tokens_that_have_to_be_seen():
    assert notations.HARMONY.marks >= {"<|channel|>", "<|message|>", "<|constrain|>"}
    assert notations.GEMMA.marks == {"<|tool_call>", "<tool_call|>", '<|"|>', "<escape>"}
