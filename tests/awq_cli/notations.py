"""Calls of tools in the notations of Python and of Gemma: of LFM2, Gemma 4, FunctionGemma and gpt-oss."""

import json

from awq_cli.serving.bodies import Call
from awq_cli.serving.calls import FORMS
from engine.thoughts import TO_FUNCTION

TOOLS = {
    "weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "kinds": {"type": "array"}}},
    "now": {"properties": {}},
}


def call(name: str, **arguments) -> Call:
    return Call(name, json.dumps(arguments, ensure_ascii=False))


PARIS, NOW = call("weather", city="Paris", days=3), call("now")
IN_JSON = '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}'
GEMMA, FUNCTION_GEMMA, LFM, LFM_LISTED, HARMONY = FORMS[4:]
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
    "gpt-oss": (
        HARMONY,
        f'I look.\n\n{TO_FUNCTION}weather<|message|>{{"city": "Paris", "days": 3}}{TO_FUNCTION}now<|message|>{{}}',
        "I look.", [PARIS, NOW],
    ),
    "gpt-oss, as it writes": (
        HARMONY, f'{TO_FUNCTION}weather <|constrain|>json<|message|>{{"city": "Paris", "days": 3}}', "", [PARIS],
    ),
    "code": (
        LFM, "<|tool_call_start|>[weather(city=now())]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city=now())]<|tool_call_end|>", [],
    ),
}  # fmt: skip


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
TEMPLATES = [
    ("{% if tools %}<|tool>{{ '<|tool_call>call:' }}{% endif %}", GEMMA),
    ("{% if tools %}<start_function_call>{% endif %}", FUNCTION_GEMMA),
    ("{% if tools %}<|tool_list_start|>{% endif %}", LFM_LISTED),
    ("{% if tools %}{% endif %}<|tool_call_start|>", LFM),
    ("{% if tools %}{% endif %}{{ '<|start|>assistant to=' + 'functions.' + name }}<|call|>", HARMONY),
]
