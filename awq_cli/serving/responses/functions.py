"""Tools of a request of OpenAI's API of responses, put as those of a chat."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from awq_cli.serving.fields import wrong
from awq_cli.serving.tools import MOST_TOOLS, is_search


@dataclass(frozen=True)
class Function:
    """A tool that the model is shown. space: of names, that it is in, if it is; shown: its name to the model."""

    space: str | None
    shown: str
    told: dict[str, Any]


def functions_of(given: dict[str, Any]) -> list[Function]:
    """Those of a request. Raises `Refusal`."""
    tools = given.get("tools") or []
    if not isinstance(tools, list) or len(tools) > MOST_TOOLS:
        raise wrong("tools", f"has to be a list of up to {MOST_TOOLS} tools")
    found: list[tuple[str | None, dict[str, Any]]] = []
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "namespace" and isinstance(tool.get("tools"), list) and isinstance(tool.get("name"), str):
            found += [(tool.get("name"), _function(one, where)) for one in tool["tools"]]
        elif not is_search(tool):
            found.append((None, _function(tool, where)))
    names = Counter(told["name"] for _, told in found)
    functions = [Function(space, _shown(told["name"], space, names), told) for space, told in found]
    if (most := Counter(one.shown for one in functions).most_common(1)) and most[0][1] > 1:
        raise wrong("tools", f"have two functions by the name of {most[0][0]}")
    return functions


def _shown(name: str, space: str | None, names: Counter[str]) -> str:
    """With its space where another has the same name."""
    return name if space is None or names[name] < 2 else f"{space}__{name}"


def _function(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise wrong(where, f"is of type {kind}; functions are all that there is here")
    if not isinstance(tool.get("name"), str):
        raise wrong(where, "has to have a name")
    return tool


def as_tool(function: Function) -> dict[str, Any]:
    """As a request of a chat has it."""
    told = {name: function.told.get(name) for name in ("description", "parameters", "strict")}
    more = {name: one for name, one in told.items() if one is not None}
    return {"type": "function", "function": {"name": function.shown, **more}}


def as_choice(given: Any) -> Any:
    """A `tool_choice`, as a request of a chat has it."""
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "function":
        return {"type": "function", "function": {"name": given.get("name")}}
    if kind == "allowed_tools" and isinstance(given.get("tools"), list):
        allowed = {"mode": given.get("mode"), "tools": [as_choice(one) for one in given["tools"]]}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return given
