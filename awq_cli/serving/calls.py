"""Calls of tools in what a model writes, in the forms that models were taught; found as it is written.

A chat template that takes tools shows the model the form that it was taught, and names its marks: that is how the form
of a model is known (`form_of`).
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

ARGUMENTS = ("arguments", "parameters")  # as models call them in JSON
_PLAIN = json.JSONDecoder(strict=False)  # models put line ends into strings
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NAMED = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\][^\[]*)?\[ARGS\](.*)", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """Of a tool. arguments: a JSON object, as text."""

    name: str
    arguments: str


# Of each tool, by its name, its parameters as a JSON schema.
Tools = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Form:
    """begin, end: what stands around a call; without an end it reaches to the next beginning, or the end of the answer;
    bare: whether an answer may be a call without either; told: what templates say of the form, if not its beginning.
    """

    begin: str
    end: str = ""
    bare: bool = False
    told: str = ""

    @property
    def marks(self) -> frozenset[str]:
        """What must not be left out of the text where a tokenizer has it as a special token."""
        return frozenset({self.begin, self.end, "[ARGS]", "[CALL_ID]"} - {""})


FORMS = (
    Form("<tool_call>", "</tool_call>"),  # of Hermes, Qwen, GLM, Granite 4 and many others
    Form("<|tool_call|>", "<|/tool_call|>"),  # of Phi-4; Granite 3 has no end of it
    Form("[TOOL_CALLS]"),  # of Mistral
    Form("<|python_tag|>", bare=True, told='"parameters": dictionary'),  # of Llama 3.1 to 3.3
)


def form_of(template: str) -> Form | None:
    """The form of calls in a chat template that takes tools; None where it takes none, or in a form not known here."""
    if "tools" not in template:
        return None
    return next((form for form in FORMS if (form.told or form.begin) in template), None)


class Reader(Protocol):
    """Pieces of an answer in; text for whoever reads along and whole calls out.

    over: whether nothing more is wanted.
    """

    over: bool

    def add(self, piece: str) -> tuple[str, list[Call]]: ...

    def end(self) -> tuple[str, list[Call]]:
        """What was held back, once the answer has ended."""
        ...


@dataclass
class CallReader:
    """`Reader` of calls amid text. What is no call after all is given out as the text that it is.

    single: whether one call is all that is wanted.
    """

    form: Form
    tools: Tools
    single: bool = False
    over: bool = False
    _held: str = ""
    _before: str = ""  # spaces before the call that it is in
    _inside: bool = False
    _found: int = 0
    _bare: bool = field(init=False)  # whether all so far may be a call without marks

    def __post_init__(self) -> None:
        self._bare = self.form.bare

    def add(self, piece: str) -> tuple[str, list[Call]]:
        if self.over:
            return "", []
        self._held += piece
        if self._bare:
            begun = self._held.lstrip()
            if not begun or begun[0] == "{" or self.form.begin.startswith(begun[: len(self.form.begin)]):
                return "", []
            self._bare = False
        texts: list[str] = []
        calls: list[Call] = []
        while not self.over and self._take(texts, calls):
            pass
        return "".join(texts), calls

    def end(self) -> tuple[str, list[Call]]:
        held, self._held = self._held, ""
        if self.over:
            return "", []
        if self._bare:
            calls = _in_json(held.strip().removeprefix(self.form.begin))
            if calls and all(call.name in self.tools for call in calls):
                return "", self._kept(calls)
        elif self._inside:
            texts: list[str] = []
            calls: list[Call] = []
            self._read(held, texts, calls, whole=False)
            return "".join(texts), calls
        return ("" if self._found and not held.strip() else held), []

    def _take(self, texts: list[str], calls: list[Call]) -> bool:
        """One step further in what is held; False where more has to come first."""
        mark = (self.form.end or self.form.begin) if self._inside else self.form.begin
        before, there, after = self._held.partition(mark)
        if self._inside:
            if there:
                self._held, self._inside = after, not self.form.end
                self._read(before, texts, calls, whole=True)
            return bool(there)
        if there:
            text = before.rstrip()
            texts.append(text)
            self._held, self._before, self._inside = after, before[len(text) :], True
            return True
        kept = _open_end(self._held, mark)
        if self._found and not self._held[:kept].strip():
            return False
        texts.append(self._held[:kept])
        self._held = self._held[kept:]
        return False

    def _read(self, body: str, texts: list[str], calls: list[Call], whole: bool) -> None:
        found = calls_in(body, self.tools)
        if found:
            calls += self._kept(found)
        else:
            texts.append(self._before + self.form.begin + body + (self.form.end if whole else ""))
        self._before = ""

    def _kept(self, calls: list[Call]) -> list[Call]:
        if self.single:
            calls, self.over = calls[: 1 - self._found], True
        self._found += len(calls)
        return calls


@dataclass
class JsonReader:
    """`Reader` of an answer that was kept to a form of JSON: `read` makes calls of it at its end."""

    read: Callable[[str], list[Call]]
    over: bool = False
    _held: str = ""

    def add(self, piece: str) -> tuple[str, list[Call]]:
        self._held += piece
        return "", []

    def end(self) -> tuple[str, list[Call]]:
        calls = self.read(self._held)
        return ("" if calls else self._held), calls


def calls_in(body: str, tools: Tools) -> list[Call]:
    """What stands between the marks of a call; none where it is no call."""
    body = body.strip()
    if body[:1] in ("{", "["):
        return _in_json(body)
    if functions := _FUNCTION.findall(body):
        return [_of_texts(name, _PARAMETER.findall(inner), tools) for name, inner in functions]
    if named := _NAMED.fullmatch(body):
        given = _decoded(named[2])
        return [Call(named[1], json.dumps(given[0], ensure_ascii=False))] if _are_arguments(given) else []
    name, pairs = body.partition("<arg_key>")[0].strip(), _PAIR.findall(body)
    return [_of_texts(name, pairs, tools)] if pairs or name in tools else []


def _in_json(text: str) -> list[Call]:
    """Of objects with a name and arguments, one after the other or in a list; none if one of them is something else."""
    values = _decoded(text)
    flat = [one for value in values or [] for one in (value if isinstance(value, list) else [value])]
    calls = [_of_object(one) for one in flat]
    return [] if None in calls else [call for call in calls if call is not None]


def _decoded(text: str) -> list[Any] | None:
    """Values of JSON, with nothing but spaces and semicolons between; None for anything else."""
    found, place = [], 0
    while place < len(text):
        if text[place].isspace() or text[place] == ";":
            place += 1
            continue
        try:
            value, place = _PLAIN.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        found.append(value)
    return found


def _are_arguments(given: list[Any] | None) -> bool:
    return given is not None and len(given) == 1 and isinstance(given[0], dict)


def _of_object(given: Any) -> Call | None:
    if not isinstance(given, dict):
        return None
    if isinstance(given.get("function"), dict):  # as in the API itself
        given = given["function"]
    name = given.get("name")
    arguments = next((given[word] for word in ARGUMENTS if given.get(word) is not None), {})
    if isinstance(arguments, str):
        inner = _decoded(arguments)
        arguments = inner[0] if _are_arguments(inner) else None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def _of_texts(name: str, pairs: Iterable[tuple[str, str]], tools: Tools) -> Call:
    """Of arguments that are written as they are: JSON where their schema does not say that they are texts."""
    properties = tools.get(name.strip(), {}).get("properties")
    arguments = {}
    for key, text in pairs:
        known = properties.get(key.strip()) if isinstance(properties, dict) else None
        kind = known.get("type") if isinstance(known, dict) else None
        values = None if kind == "string" else _decoded(text)
        arguments[key.strip()] = values[0] if values is not None and len(values) == 1 else text
    return Call(name.strip(), json.dumps(arguments, ensure_ascii=False))


def _open_end(text: str, mark: str) -> int:
    """Where a tail begins that may belong to a mark: spaces, and what the mark begins with."""
    most = min(len(text), len(mark) - 1)
    part = next((length for length in range(most, 0, -1) if text.endswith(mark[:length])), 0)
    return len(text[: len(text) - part].rstrip())
