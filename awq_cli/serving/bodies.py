"""What stands between the marks of a call, read in each form that models were taught.

Each text is walked once, from mark to mark: there are no patterns here that may go back.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from awq_cli.serving.notations import CALL, gemma_call, python_calls
from awq_cli.serving.written import Tools, typed
from engine.thoughts import CONSTRAIN, MESSAGE

ARGUMENTS = ("arguments", "parameters")  # as models call them in JSON
MOST_BEGUN = 100  # characters that tell what begins
NAME = re.compile(r"[\w.-]{1,64}")
FUNCTION, PARAMETER, KEY, VALUE = "<function=", "<parameter=", "<arg_key>", "<arg_value>"
_AFTER_PARAMETER = re.compile(r"\s*(?:<parameter=|</function>|\Z)")
_AFTER_VALUE = re.compile(r"\s*(?:<arg_key>|\Z)")


@dataclass(frozen=True)
class Call:
    """Of a tool. arguments: a JSON object, as text."""

    name: str
    arguments: str


def listed_calls(text: str) -> list[Call]:
    """Those of a list in JSON that are whole, up to where it was cut."""
    calls, place = [], text.find("[") + 1
    while place:
        place = _past_spaces(text, place, ",")
        value = decoded(text, place)
        call = None if value is None else _of_object(value[0])
        if call is None:
            break
        calls.append(call)
        place = value[1]
    return calls


def named_call(name: str, text: str) -> list[Call]:
    """Of a function that was chosen, if the answer is its arguments, whole."""
    text = text.strip()
    value = decoded(text, 0)
    made = None if value is None or text[value[1] :] else _call(name, value[0])
    return [] if made is None else [made]


@dataclass(frozen=True)
class Found:
    """Calls, and what stands behind them."""

    calls: list[Call]
    rest: str


def may_begin(text: str, tools: Tools) -> bool:
    """Whether what stands behind a mark may be, or become, a call."""
    text = text.lstrip()[:MOST_BEGUN]
    if not text or text[0] in "{[" or any(text.startswith(one) or one.startswith(text) for one in (FUNCTION, CALL)):
        return True
    named = NAME.match(text)
    if named is None:
        return False
    if len(text) == named.end():
        return any(name.startswith(named[0]) for name in tools)
    return named[0] in tools and text[named.end() :].lstrip()[:1] in ("", "[", "{", "<", "(")


def leading_calls(text: str, tools: Tools) -> Found | None:
    """The calls that a text begins with; None where it begins with none."""
    start = len(text) - len(text.lstrip())
    if text.startswith(("{", "["), start):
        return _in_json(text, start) or _in_python(text)
    if text.startswith(FUNCTION, start):
        return _in_functions(text, start, tools)
    if text.startswith(CALL, start):
        return _in_gemma(text, start)
    named = NAME.match(text, start)
    if named is None or named[0] not in tools:  # or any word would be one
        return None
    name, place = named[0], _past_spaces(text, named.end())
    if text.startswith(KEY, place) or place == len(text):
        return _in_pairs(name, text, place, tools)
    if text.startswith("(", place):
        return _in_python(text)
    if text.startswith("[CALL_ID]", place):
        place = max(place, text.find("[ARGS]", place, place + 100))
    if text.startswith(CONSTRAIN, place):
        place = max(place, text.find(MESSAGE, place, place + 100))
    for mark in ("[ARGS]", MESSAGE):
        if text.startswith(mark, place):
            place = _past_spaces(text, place + len(mark))
    if text.startswith("{", place):
        value = decoded(text, place)
        call = None if value is None else _call(name, value[0])
        return None if call is None else Found([call], text[value[1] :])
    return None


def _in_json(text: str, place: int) -> Found | None:
    """Of objects with a name and arguments, one after the other or in a list."""
    calls: list[Call] = []
    while text.startswith(("{", "["), place):
        value = decoded(text, place)
        if value is None:
            return None if not calls else Found(calls, text[place:])
        many = value[0] if isinstance(value[0], list) else [value[0]]
        made = [_of_object(one) for one in many]
        if not made or None in made:
            return None if not calls else Found(calls, text[place:])
        calls += made
        place = _past_spaces(text, value[1], ";")
    return Found(calls, text[place:])


def _in_python(text: str) -> Found | None:
    """Of LFM2, Llama 4 and OLMo 3: nothing else may stand beside them."""
    made = [_call(*named) for named in python_calls(text) or []]
    return None if not made or None in made else Found(made, "")


def _in_gemma(text: str, place: int) -> Found | None:
    """Of Gemma 4 and FunctionGemma."""
    calls: list[Call] = []
    while (found := gemma_call(text, place)) is not None:
        call = _call(*found[0])
        if call is None:
            break
        calls.append(call)
        place = _past_spaces(text, found[1], ",;")
    return Found(calls, text[place:]) if calls else None


def _in_functions(text: str, place: int, tools: Tools) -> Found | None:
    """Of Qwen3-Coder."""
    calls: list[Call] = []
    while text.startswith(FUNCTION, place):
        close = text.find(">", place, place + 100)
        name = text[place + len(FUNCTION) : close].strip()
        if close < 0 or not NAME.fullmatch(name):
            return Found(calls, text[place:]) if calls else None
        pairs, place = [], _past_spaces(text, close + 1)
        while text.startswith(PARAMETER, place):
            close = text.find(">", place, place + 200)
            end = -1 if close < 0 else _end_of(text, close + 1, "</parameter>", _AFTER_PARAMETER)
            if end < 0:
                return Found(calls, text[place:]) if calls else None
            value = text[close + 1 : end].removeprefix("\n").removesuffix("\n")
            pairs.append((text[place + len(PARAMETER) : close].strip(), value))
            place = _past_spaces(text, end + len("</parameter>"))
        call = _call(name, {key: typed(value, key, tools.get(name)) for key, value in pairs})
        if call is None:
            return None
        calls.append(call)
        if text.startswith("</function>", place):
            place = _past_spaces(text, place + len("</function>"))
    return Found(calls, text[place:])


def _in_pairs(name: str, text: str, place: int, tools: Tools) -> Found | None:
    """Of GLM."""
    arguments: dict[str, Any] = {}
    while text.startswith(KEY, place):
        close = text.find("</arg_key>", place, place + 300)
        value = _past_spaces(text, close + len("</arg_key>"))
        if close < 0 or not text.startswith(VALUE, value):
            return None
        end = _end_of(text, value, "</arg_value>", _AFTER_VALUE)
        if end < 0:
            return None
        key = text[place + len(KEY) : close].strip()
        arguments[key] = typed(text[value + len(VALUE) : end], key, tools.get(name))
        place = _past_spaces(text, end + len("</arg_value>"))
    call = _call(name, arguments)
    return None if call is None else Found([call], text[place:])


def _end_of(text: str, place: int, mark: str, behind: re.Pattern[str]) -> int:
    """Where the first mark stands that something else of the form follows: others are of the value; -1 for none."""
    at = text.find(mark, place)
    while at >= 0 and not behind.match(text, at + len(mark)):
        at = text.find(mark, at + len(mark))
    return at


def _past_spaces(text: str, place: int, more: str = "") -> int:
    while place < len(text) and (text[place].isspace() or text[place] in more):
        place += 1
    return place


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)  # models put line ends into strings


def decoded(text: str, place: int) -> tuple[Any, int] | None:
    """A value of JSON, and where it ends; None where there is none."""
    try:
        return _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        return None


def _of_object(given: Any) -> Call | None:
    if not isinstance(given, dict):
        return None
    if isinstance(given.get("function"), dict):  # as in the API itself
        given = given["function"]
    name = given.get("name")
    arguments = next((given[word] for word in ARGUMENTS if given.get(word) is not None), {})
    if isinstance(arguments, str):
        inner = decoded(arguments.strip(), 0)
        arguments = None if inner is None else inner[0]
    return _call(name, arguments) if isinstance(name, str) and name else None


def _call(name: str, arguments: Any) -> Call | None:
    """None for what is no object, or has values that JSON has none for."""
    if not isinstance(arguments, dict):
        return None
    try:
        told = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (told + name).encode()
    except UnicodeEncodeError:  # halves of characters, which only escapes can say
        return Call(name.encode("utf-8", "replace").decode(), json.dumps(arguments, allow_nan=False))
    except (ValueError, RecursionError):
        return None
    return Call(name, told)
