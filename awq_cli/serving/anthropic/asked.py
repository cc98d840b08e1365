"""Requests of Anthropic's API of messages, put as requests of a chat of OpenAI's: the same by other names, and messages
that are made of blocks.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from awq_cli.serving.asks import Ask, Limits, read_chat
from awq_cli.serving.choosing import FIELDS
from awq_cli.serving.fields import MOST, flag, mapping, whole, wrong
from awq_cli.serving.forms import FORM, Forms
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.renaming import renamed
from awq_cli.serving.tools import MOST_TOOLS, is_search, read_call
from engine.model import Model
from engine.text import check_unicode

# Fields of a request in a chat, and what they are called here.
NAMES = {"stop": "stop_sequences", "max_completion_tokens": "max_tokens", FORM: "output_config.format"}
SAME = FIELDS | {"stream"}
OWN = {"messages", "max_tokens", "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config"}
# Fields that change nothing in an answer here.
ASIDE = {
    "model", "metadata", "service_tier", "cache_control", "diagnostics", "inference_geo", "speed", "betas",
    "user_profile_id", "workspace_id", "context_management",
}  # fmt: skip
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
THINKING = ("enabled", "disabled", "adaptive", "between_tools")
ROLES = ("user", "assistant", "system")
BILLING = "x-anthropic-billing-header:"
BLOCKS = "has a block of type {}; this model reads texts, thoughts, and calls of tools"

Message = tuple[str, dict[str, Any]]  # of a chat, and where it is from


def read_message(given: dict[str, Any], model: Model, forms: Forms, limits: Limits) -> Ask:
    """Of /v1/messages. Raises as `read_chat` does."""
    if whole(given, "max_tokens", 1, None) is None:
        raise wrong("max_tokens", "has to be given")
    return _read(given, model, forms, limits)


def count_tokens(given: dict[str, Any], model: Model, forms: Forms, limits: Limits) -> int:
    """Of /v1/messages/count_tokens: those of the prompt. Raises as `read_chat` does."""
    counted = {**given, "max_tokens": 1, "stream": False, "output_config": None}
    return _read(counted, model, forms, replace(limits, context=MOST)).prompt_tokens


def _read(given: dict[str, Any], model: Model, forms: Forms, limits: Limits) -> Ask:
    chat, places = as_chat(given)
    try:
        return read_chat(chat, model, forms, limits.without_bound())
    except Refusal as refusal:
        told = renamed(refusal, NAMES, places)
        if told.code == "context_length_exceeded":  # clients look for these words, to sum up what was said
            told = replace(told, message=f"prompt is too long: {told.message}")
        raise told from refusal


def as_chat(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The request of a chat that asks for the same, and where in this one each of its messages is from.

    Raises `Refusal`.
    """
    for name, value in given.items():
        if name not in SAME | OWN | ASIDE and value is not None:
            raise Refusal(400, f"{name}: Extra inputs are not permitted", name, "unknown_parameter")
    chat = {name: value for name, value in given.items() if name in SAME}
    messages = [*_system(given.get("system")), *_messages(given.get("messages"))]
    chat["messages"] = [message for _, message in messages]
    chat["max_completion_tokens"], chat["stop"] = given.get("max_tokens"), given.get("stop_sequences")
    chat["tools"] = _tools(given.get("tools"))
    chat |= _choice(given.get("tool_choice"))
    thinking, config = mapping(given, "thinking").get("type", "disabled"), mapping(given, "output_config")
    if thinking not in THINKING:
        raise wrong("thinking", f"has to have a type, one of {', '.join(THINKING)}")
    chat["chat_template_kwargs"] = {"enable_thinking": thinking != "disabled"}  # where a template has the switch
    if config.get("effort") is not None:
        chat["chat_template_kwargs"]["reasoning_effort"] = config["effort"]
    chat[FORM] = _form(config.get("format"))
    return chat, [where for where, _ in messages]


def _form(given: Any) -> Any:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
        raise wrong("output_config.format", "has to be of type json_schema, with a schema")
    return {"type": "json_schema", "schema": given["schema"]}


def _tools(given: Any) -> list[dict[str, Any]]:
    tools = [] if given is None else given
    if not isinstance(tools, list) or len(tools) > MOST_TOOLS:
        raise wrong("tools", f"has to be a list of up to {MOST_TOOLS} tools")
    found = []
    for number, tool in enumerate(tools):
        if is_search(tool):
            continue
        kind = tool.get("type") if isinstance(tool, dict) else "none"
        if kind not in (None, "custom"):
            raise wrong(f"tools[{number}]", f"is of type {kind}; those that a request describes are all there are here")
        told = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": tool.get("input_schema"),
        }
        found.append({"type": "function", "function": {name: one for name, one in told.items() if one is not None}})
    return found


def _choice(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "tool":
        choice = {"type": "function", "function": {"name": given.get("name")}}
    elif isinstance(kind, str) and kind in CHOICES:
        choice = CHOICES[kind]
    else:
        raise wrong("tool_choice", f"has to be of type {', '.join(CHOICES)} or tool")
    return {"tool_choice": choice, "parallel_tool_calls": not flag(given, "disable_parallel_tool_use")}


def _system(given: Any) -> list[Message]:
    """Without what Claude Code tells of itself for a bill: that is another in each request, so that all that stands
    behind it would have to be read again.
    """
    text = "" if given is None else _text(given, "system", but=BILLING)
    return [("system", {"role": "system", "content": text})] if text else []


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise wrong("messages", "has to be a list of one message or more")
    made: list[Message] = []
    names: dict[Any, Any] = {}  # of the tools that were called
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise wrong(where, f"has to have a role, one of {', '.join(ROLES)}")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise wrong(where, "has to have content, a text or a list of blocks")
        for one in _answer(blocks, where) if role == "assistant" else _asked(role, blocks, where):
            names |= {call["id"]: call["function"]["name"] for call in one.get("tool_calls", []) if "id" in call}
            if one["role"] == "tool" and one["tool_call_id"] in names:
                one["name"] = names[one["tool_call_id"]]
            if not made or not _joined(made[-1][1], one):
                made.append((where, one))
    where, last = made[-1]
    if last["role"] == "assistant":
        if last.get("tool_calls"):
            raise wrong(where, "has calls that nothing is said of: what tools gave has to follow")
        if not last["content"] and len(made) > 1:
            return made[:-1]
        last["prefix"] = True  # as this API has it: an answer that has begun is gone on with
    return made


def _asked(role: str, blocks: list[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """What tools gave comes first, for each of them a message, then what is said."""
    said = []
    for block in blocks:
        if block.get("type") == "tool_result" and role == "user":
            content = block.get("content")
            text = "" if content is None else _text(content, where)
            if not isinstance(block.get("tool_use_id"), str):
                raise wrong(where, "has what a tool gave without a tool_use_id")
            text = f"Error: {text}" if flag(block, "is_error") else text
            yield {"role": "tool", "content": text, "tool_call_id": block["tool_use_id"]}
        else:
            said.append(block)
    if said or not blocks:
        yield {"role": role, "content": _text(said, where)}


def _answer(blocks: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """One message, of thoughts, texts and calls."""
    texts, thoughts, calls = [], [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "thinking" and isinstance(block.get("thinking"), str):
            thoughts.append(block["thinking"])
        elif kind == "tool_use":
            call = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append(read_call({"id": block.get("id"), "function": call}, where))
        elif kind != "redacted_thinking":  # of which nobody here could know what it says
            texts.append(block)
    message: dict[str, Any] = {"role": "assistant", "content": _text(texts, where, between="")}
    message |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
    return [message | ({"tool_calls": calls} if calls else {})]


def _joined(last: dict[str, Any], one: dict[str, Any]) -> bool:
    """Whether a message is of the turn that the last one is of, as this API has it, and was put into that."""
    if last["role"] != one["role"] or one["role"] not in ("user", "assistant"):
        return False
    between = "\n" if one["role"] == "user" else ""
    last["content"] = between.join(text for text in (last["content"], one["content"]) if text)
    for name, nothing in (("reasoning_content", ""), ("tool_calls", [])):
        if one.get(name):
            last[name] = last.get(name, nothing) + one[name]
    return True


def _text(given: Any, where: str, but: str = "\0", between: str = "\n") -> str:
    """Of a text, or of blocks of such, but for those that begin so. between: what stands between blocks."""
    blocks = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(blocks, list):
        raise wrong(where, "has to be a text, or a list of blocks")
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text" or not isinstance(block.get("text"), str):
            raise wrong(where, BLOCKS.format(kind))
    text = between.join(block["text"] for block in blocks if not block["text"].startswith(but))
    check_unicode(text, where)
    return text
