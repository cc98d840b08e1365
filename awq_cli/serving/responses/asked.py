"""Requests of OpenAI's API of responses, put as requests of a chat: the same fields by other names, and a conversation
that is a list of items, one for each message, call, result of a call, and thought.
"""

import re
from collections.abc import Iterator
from typing import Any

from awq_cli.serving.asks import ASIDE, Ask, Limits, read_chat
from awq_cli.serving.choosing import FIELDS
from awq_cli.serving.fields import flag, mapping, wrong
from awq_cli.serving.forms import FORM, Forms
from awq_cli.serving.messages import is_one_of
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.renaming import renamed
from awq_cli.serving.responses.functions import as_choice, as_tool, functions_of
from awq_cli.serving.responses.kept import Kept
from awq_cli.serving.tools import read_call
from engine.model import Model
from engine.text import check_unicode

# Fields of a request in a chat, and what they are called here.
NAMES = {
    "messages": "input", "max_completion_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort",
    FORM: "text.format",
}  # fmt: skip
SAME = FIELDS | {
    "stream", "stream_options", "stop", "top_logprobs", "parallel_tool_calls", "chat_template_kwargs",
}  # fmt: skip
OWN = {
    "input", "previous_response_id", "instructions", "include", "tools", "tool_choice", "reasoning", "text",
    "max_output_tokens",
}  # fmt: skip
BESIDE = ASIDE | {"max_tool_calls", "background_options", "client_metadata"}
# Fields that ask for what is not done here, what they are when they ask for nothing, and what to do instead.
NOT_DONE: dict[str, tuple[tuple[Any, ...], str]] = {
    "conversation": ((None,), "; name the previous_response_id, or send all of it as input"),
    "background": ((None, False), "; leave it out"),
    "prompt": ((None,), "; send what it says as input"),
    "truncation": ((None, "disabled"), "; shorten the input, and leave it out"),
    "context_management": ((None, []), "; leave it out"),
    "moderation": ((None,), "; leave it out"),
}
OF_TEXT = {"format", "verbosity"}
OF_REASONING = {"effort", "summary", "generate_summary", "context", "mode"}
LOGPROBS = "message.output_text.logprobs"
# What else may be asked to be told of: none of it there is here.
INCLUDED = re.compile(r"(?:file_search|web_search|code_interpreter|computer)_call\S*|reasoning\.\S+|message\.input_\S+")
TEXTS = ("input_text", "output_text", "text")
THOUGHTS = ("reasoning_text", "text")

Names = dict[tuple[str | None, str], str]  # of functions, by their spaces and names there: as the model is shown them


def read_response(kept: Kept, given: dict[str, Any], model: Model, forms: Forms, limits: Limits) -> Ask:
    """Of /v1/responses. Raises as `read_chat` does."""
    chat, places = as_chat(given, kept)
    try:
        return read_chat(chat, model, forms, limits)
    except Refusal as refusal:
        raise renamed(refusal, NAMES, places) from refusal


def as_chat(given: dict[str, Any], kept: Kept) -> tuple[dict[str, Any], list[str]]:
    """The request of a chat that asks for the same, and where in this one each of its messages is from.

    Raises `Refusal`.
    """
    _check_fields(given)
    chat = {name: value for name, value in given.items() if name in SAME}
    functions = functions_of(given)
    names = {(function.space, function.told["name"]): function.shown for function in functions}
    messages = _with_instructions(given, list(_messages(*kept.conversation(given), names)))
    chat["messages"] = [message for _, message in messages]
    chat["max_completion_tokens"] = given.get("max_output_tokens")
    chat["logprobs"] = _included(given.get("include")) or bool(given.get("top_logprobs"))
    chat["top_logprobs"] = given.get("top_logprobs") or None
    chat["tools"] = [as_tool(function) for function in functions]
    flag(given, "store")
    chat["tool_choice"] = as_choice(given.get("tool_choice"))
    reasoning, text = mapping(given, "reasoning", OF_REASONING), mapping(given, "text", OF_TEXT)
    mapping(given, "metadata")
    chat["reasoning_effort"] = reasoning.get("effort")
    chat[FORM] = _form(text.get("format"))
    return chat, [where for where, _ in messages]


def _check_fields(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name in NOT_DONE:
            nothing, instead = NOT_DONE[name]
            if not is_one_of(value, nothing):
                raise Refusal(400, f"{name} is not supported here{instead}", name, "unsupported_parameter")
        elif name not in SAME | OWN | BESIDE:
            raise Refusal(400, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")


def _included(given: Any) -> bool:
    """Whether probabilities are."""
    names = [] if given is None else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong("include", "has to be a list of names")
    for name in names:
        if name != LOGPROBS and not INCLUDED.fullmatch(name):
            raise wrong("include", f"has {name}, which nobody knows")
    return LOGPROBS in names


def _form(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    told = {name: one for name, one in given.items() if one is not None}
    if told.get("type") != "json_schema":
        return told
    if not isinstance(told.get("schema"), dict):
        raise wrong("text.format", "has to have a schema")
    return {"type": "json_schema", "json_schema": {name: one for name, one in told.items() if name != "type"}}


def _with_instructions(
    given: dict[str, Any], messages: list[tuple[str, dict[str, Any]]]
) -> list[tuple[str, dict[str, Any]]]:
    """Ahead of all; in one with the system texts that come next, since few templates take two."""
    instructions = given.get("instructions")
    if not isinstance(instructions, str | None):
        raise wrong("instructions", "has to be a text")
    if instructions:
        check_unicode(instructions, "instructions")
        part = {"type": "text", "text": instructions}
        messages = [("instructions", {"role": "system", "content": [part]}), *messages]
    first = next(
        (at for at, (_, one) in enumerate(messages) if one["role"] not in ("system", "developer")), len(messages)
    )
    if first < 2:
        return messages
    parts = [part for _, one in messages[:first] for part in ({"type": "text", "text": "\n\n"}, *one["content"])]
    return [(messages[0][0], {"role": "system", "content": parts[1:]}), *messages[first:]]


def _messages(items: list[Any], before: int, names: Names) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that items make: what a model gave in one answer is one of them. before: of another request."""
    if len(items) == before:
        raise wrong("input", "has to be a text, or a list of one item or more")
    answer: tuple[str, dict[str, Any]] | None = None
    for number, item in enumerate(items, -before):
        where = f"input[{number}]"
        made = _message(item, where, names)
        if made is None:
            continue
        if answer is not None and _goes_on(answer[1], made):
            calls = [*answer[1].get("tool_calls", []), *made.get("tool_calls", [])]
            answer[1].update(made, **({"tool_calls": calls} if calls else {}))
            continue
        if answer is not None:
            yield answer
        answer = (where, made) if made["role"] == "assistant" else None
        if answer is None:
            yield where, made
    if answer is not None:
        yield answer


def _goes_on(answer: dict[str, Any], made: dict[str, Any]) -> bool:
    """Whether an item is of the answer that was begun: thoughts come first, and of texts there is one."""
    if made["role"] != "assistant":
        return False
    return not ("content" in answer and ("content" in made or "reasoning_content" in made)) and not (
        "tool_calls" in answer and "reasoning_content" in made
    )


def _message(item: Any, where: str, names: Names) -> dict[str, Any] | None:
    """None for what says nothing, as thoughts do that were told to nobody."""
    if not isinstance(item, dict):
        raise wrong(where, "has to be an item, as a message is")
    kind = item.get("type") or "message"
    if kind == "message":
        return {"role": item.get("role"), "content": _parts(item.get("content"), where)}
    if kind == "function_call":
        call = read_call({"id": item.get("call_id"), "function": {**item}}, where)
        name = call["function"]["name"]
        call["function"]["name"] = names.get((str(item.get("namespace")), name), name)
        return {"role": "assistant", "tool_calls": [call]}
    if kind == "function_call_output":
        told = {"role": "tool", "content": _parts(item.get("output"), where)}
        return told | ({"tool_call_id": item["call_id"]} if isinstance(item.get("call_id"), str) else {})
    if kind == "reasoning":
        thought = _thought(item.get("content"))
        return {"role": "assistant", "reasoning_content": thought} if thought else None
    raise wrong(where, f"is of type {kind}, which this model is not told of")


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    """Of a text, or of a list of such."""
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise wrong(where, "has to have a text")
    told = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in (*TEXTS, "refusal"):
            raise wrong(where, f"has a part of type {kind}; this model reads nothing but texts")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise wrong(where, f"has a part of type {kind} without a text")
        check_unicode(text, where)
        told.append({"type": "text", "text": text})
    return told


def _thought(content: Any) -> str:
    """What an answer's thoughts were, as they were given; a summary of them is something else."""
    parts = content if isinstance(content, list) else []
    told = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in THOUGHTS]
    return "".join(text for text in told if isinstance(text, str))
