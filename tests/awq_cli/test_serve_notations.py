"""Calls of tools in the notations of Python and of Gemma: of LFM2, Gemma 4 and FunctionGemma."""

import pytest

from awq_cli.serving.bodies import leading_calls
from awq_cli.serving.calls import FORMS, CallReader, form_of
from tests.awq_cli.test_serve_calls import IN_JSON, NOW, PARIS, TOOLS, call, read

GEMMA, FUNCTION_GEMMA, LFM, LFM_LISTED = FORMS[4:]
KINDS = [["a b", None, 1.5], {"x": True}]
WEATHER = call("weather", city="Köln, it's", days=-3, kinds=KINDS)
IN_GEMMA = 'call:weather{city:<|"|>Köln, it\'s<|"|>,days:-3,kinds:[[<|"|>a b<|"|>,null,1.5],{x:true}]}'
IN_PYTHON = """weather(city="Köln, it's", days=-3, kinds=[("a b", None, 1.5), {'x': true}])"""
CASES = {
    "gemma": (GEMMA, f"I look.<|tool_call>{IN_GEMMA}<tool_call|>", "I look.", [WEATHER]),
    "two": (GEMMA, f"<|tool_call>call:now{{}}<tool_call|><|tool_call>{IN_GEMMA}<tool_call|>", "", [NOW, WEATHER]),
    "marks in a text": (
        GEMMA, '<|tool_call>call:weather{city:<|"|>a<tool_call|>}{,:"<|"|>}<tool_call|>', "",
        [call("weather", city='a<tool_call|>}{,:"')],
    ),
    "without quotes": (
        GEMMA, "<|tool_call>call:weather{city: New York (NY), days: 3 }<tool_call|>", "",
        [call("weather", city="New York (NY)", days=3)],
    ),
    "quotes of JSON": (
        GEMMA, r'<|tool_call>call:weather{"city": "a\n\"\ud83d\ude00\u00e9"}<tool_call|>', "",
        [call("weather", city='a\n"😀é')],
    ),
    "none": (
        GEMMA, "<|tool_call>call:weather{city<tool_call|>.", "<|tool_call>call:weather{city<tool_call|>.", []
    ),
    "digits that are a text": (
        GEMMA, '<|tool_call>call:weather{city:<|"|>12<|"|>}<tool_call|>', "", [call("weather", city="12")]
    ),
    "functiongemma": (
        FUNCTION_GEMMA, "<start_function_call>call:weather{city:<escape>Paris<escape>,days:3}<end_function_call>", "",
        [PARIS],
    ),
    "lfm": (LFM, f"<|tool_call_start|>[{IN_PYTHON}, now()]<|tool_call_end|>So.", "So.", [WEATHER, NOW]),
    "lfm, JSON": (LFM_LISTED, f"<|tool_call_start|>[{IN_JSON}]<|tool_call_end|>", "", [PARIS]),
    "a line end in a text": (
        LFM, "<|tool_call_start|>[weather(city='a\nb\\'\\d\\x41')]<|tool_call_end|>", "",
        [call("weather", city="a\nb'\\dA")],
    ),
    "a mark in a text": (
        LFM, '<|tool_call_start|>[weather(city="<|tool_call_end|>)]")]<|tool_call_end|>', "",
        [call("weather", city="<|tool_call_end|>)]")],
    ),
    "code": (
        LFM, "<|tool_call_start|>[weather(city=now())]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city=now())]<|tool_call_end|>", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("case", CASES)
def test_calls_and_text_are_told_apart(case, size):
    form, answer, text, calls = CASES[case]
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    assert read(CallReader(form, TOOLS), pieces) == (text, calls)


BODIES = {
    "[now(a=007)]": None, "call:now{a:007}": ([call("now", a="007")], ""),
    r'[now(a="\U0001F600")]': ([call("now", a="😀")], ""),
    "[now(1)]": None, "[now(a=b)]": None, "[now()": None, "[now()] x": None, "now(": None, "[now(**{})]": None,
    "[now(a=[" + "[" * 60 + "]" * 60 + "])]": None, "call:now": None, "call:now{a}": None, "call:now{a:}": None,
    "call:now{a:{b:[1,}}": None, 'call:now{a:<|"|>b}': None, "call:now{a:" + "{b:" * 10**5: None, "call:": None,
    "call:now{a:1e400}": None, "[now(a=1e999)]": None, "[now(a='b)]": None, "[now(a=1 2)]": None, "[]": None,
    "now()": ([NOW], ""), "now()\nnow( )": ([NOW, NOW], ""), "call:now{} x": ([NOW], "x"), "[now(),]": ([NOW], ""),
    "now(a=(1,), b=[], )": ([call("now", a=[1], b=[])], ""), "call:now{a:'}": ([call("now", a="'")], ""),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:20])
def test_what_a_text_begins_with(body):
    found = leading_calls(body, TOOLS)
    assert (found and (found.calls, found.rest)) == BODIES[body]


@pytest.mark.parametrize(
    "template, form",
    [
        ("{% if tools %}<|tool>{{ '<|tool_call>call:' }}{% endif %}", GEMMA),
        ("{% if tools %}<start_function_call>{% endif %}", FUNCTION_GEMMA),
        ("{% if tools %}<|tool_list_start|>{% endif %}", LFM_LISTED),
        ("{% if tools %}{% endif %}<|tool_call_start|>", LFM),
        ("<|tool_call_start|>", None),
    ],
)
def test_a_template_names_the_form(template, form):
    assert form_of(template) == form


def test_special_tokens_that_have_to_be_seen():
    assert GEMMA.marks == {"<|tool_call>", "<tool_call|>", '<|"|>', "<escape>"}
