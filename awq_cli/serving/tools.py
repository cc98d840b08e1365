"""Tools of a request: what of them the model is shown, and what its answer is kept to and read by."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from awq_cli.serving.bodies import listed_calls, named_call
from awq_cli.serving.calls import CallReader, Form, JsonReader, Reader, form_of
from awq_cli.serving.fields import flag, wrong
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.written import Tools
from engine.templates import template_of

MOST_TOOLS = 128  # as OpenAI has it
DEFINITIONS = ("$defs", "definitions")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Calling:
    """How the calls of one answer come about.

    shown: the tools, as the template is given them; schema: what the answer is kept to, None where it is free;
    reader: makes what reads an answer; marks: what that has to see of special tokens; finish: what an answer with calls
    is said to have ended by; openings: what a free answer that is a call begins with.
    """

    shown: list[dict[str, Any]]
    schema: dict[str, Any] | None
    reader: Callable[[], Reader]
    marks: frozenset[str]
    finish: str
    openings: tuple[str, ...] = ()


def read_tools(given: dict[str, Any], tokenizer: Any) -> Calling | None:
    """None where the model is not to call any. Raises `Refusal`."""
    shown = given.get("tools") or []
    if not isinstance(shown, list) or len(shown) > MOST_TOOLS:
        raise wrong("tools", f"has to be a list of up to {MOST_TOOLS} tools")
    tools = dict(_tool(tool, f"tools[{number}]") for number, tool in enumerate(shown))
    single = given.get("parallel_tool_calls") is not None and not flag(given, "parallel_tool_calls")
    choice = given.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, names = _allowed(choice, tools)
        shown = [tool for tool in shown if tool["function"]["name"] in names]
        tools = {name: parameters for name, parameters in tools.items() if name in names}
    if choice == "none" or (choice in (None, "auto") and not tools):
        return None
    name = _named(choice)
    if not tools or (name not in tools and choice not in (None, "auto", "required")):
        raise wrong("tool_choice", "has to be none, auto, required, or a function that is among the tools")
    form = _form(tokenizer)
    if name is not None:
        reader = partial(JsonReader, partial(named_call, name))
        return Calling(shown, dict(tools[name]), reader, frozenset(), "stop")
    if choice == "required":
        return Calling(shown, _any_of(tools, single), partial(JsonReader, listed_calls), frozenset(), "tool_calls")
    reader = partial(CallReader, form, tools, single)
    return Calling(shown, None, reader, form.marks, "tool_calls", form.openings(tools))


def is_search(tool: Any) -> bool:
    """Whether a tool is a search of the web, which its API's own servers do. It is left out, and not refused: nothing
    here could do it, and clients offer it to any model.
    """
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind.startswith("web_search")


def _allowed(choice: dict[str, Any], tools: Tools) -> tuple[str, set[str]]:
    """How some of the tools are to be called, and the names of those."""
    allowed = choice.get("allowed_tools")
    told = allowed.get("tools") if isinstance(allowed, dict) else None
    names = [_named(one) for one in told] if isinstance(told, list) else []
    if not names or not all(name in tools for name in names) or allowed.get("mode") not in ("auto", "required"):
        raise wrong("tool_choice", "has to have a mode, auto or required, and tools that are among the tools")
    return allowed["mode"], {str(name) for name in names}


def _named(choice: Any) -> str | None:
    """The function that a request chooses."""
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _tool(tool: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Its name, and its parameters."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise wrong(where, "is no tool of type function")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(where, "has to have a name of up to 64 letters, digits, and . _ -")
    if not isinstance(parameters, dict | None) or not isinstance(function.get("description"), str | None):
        raise wrong(where, "has a description that is no text, or parameters that are no JSON schema")
    return name, {"type": "object", **(parameters or {})}


def _form(tokenizer: Any) -> Form:
    template = template_of(tokenizer, tools=True)
    form = form_of(template)
    if form is None:
        why = "writes calls in a form that is not known here" if "tools" in template else "takes none"
        raise Refusal(400, f"tools: this model's chat template {why}; leave them out", "tools", "unsupported_parameter")
    return form


def _any_of(tools: Tools, single: bool) -> dict[str, Any]:
    """A list of calls. What schemas define to refer to stands at the root of all, where they refer to it."""
    calls, defined = [], {}
    for name, parameters in tools.items():
        own = {word: parameters[word] for word in DEFINITIONS if isinstance(parameters.get(word), dict)}
        for word, schemas in own.items():
            there = defined.setdefault(word, {})
            if any(there.get(key, schema) != schema for key, schema in schemas.items()):
                raise wrong("tools", f"have different schemas by one name in {word}; give them names of their own")
            there.update(schemas)
        rest = {word: value for word, value in parameters.items() if word not in own}
        if _refers_to_all(rest):
            raise wrong("tools", f"have a schema, of {name}, that refers to itself as a whole; name it in $defs")
        known = {"name": {"const": name}, "arguments": rest}
        calls.append({"type": "object", "properties": known, "required": [*known], "additionalProperties": False})
    most = {"maxItems": 1} if single else {}
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **most, **defined}


def _refers_to_all(schema: Any) -> bool:
    """Whether there is a reference to anything but definitions: it would be to the list of calls."""
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            to = one.get("$ref")
            if (
                isinstance(to, str)
                and to.startswith("#")
                and to.split("/")[1:2] not in [[word] for word in DEFINITIONS]
            ):
                return True
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else []
    return False


def read_calls(given: Any, where: str) -> list[dict[str, Any]]:
    """The calls of an earlier answer, as templates take them: with arguments that are objects."""
    if not isinstance(given, list):
        raise wrong(where, "has to be a list of calls")
    return [read_call(call, f"{where}[{number}]") for number, call in enumerate(given)]


def read_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(where, "is no call of a function")
    arguments = function.get("arguments") or "{}"
    try:
        read = json.loads(arguments, strict=False) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise wrong(where, "has arguments that are no JSON object")
    told = {"type": "function", "function": {"name": function["name"], "arguments": read}}
    return told | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})
