"""Messages of a request, as a chat template is given them."""

from typing import Any

from awq_cli.serving.fields import flag, wrong
from awq_cli.serving.tools import read_calls
from engine.templates import Conversation
from engine.text import check_unicode

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# What would be lost, and what it is when it is nothing.
NOT_TOLD: dict[str, tuple[Any, ...]] = {"function_call": (None,), "audio": (None,)}
REASONING = ("reasoning_content", "reasoning")  # what other servers call what was thought before an answer
OWN_WORD = "thinking"  # as some templates have it; of theirs one refuses to be told it beside an answer
READ_HERE = {"role", "content", "refusal", "prefix", "tool_calls", *REASONING, *NOT_TOLD}


def read_messages(given: dict[str, Any], template: str) -> Conversation:
    """Those of a request. template: its source: whatever else it names in a message it is given, as its maker has it.

    Raises `Refusal`.
    """
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "has to be a list of one message or more")
    read = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise wrong(where, f"has to have a role, one of {', '.join(ROLES)}")
        for field, nothing in NOT_TOLD.items():
            if not is_one_of(message.get(field), nothing):
                raise wrong(where, f"has {field}, which this model is not told of")
        read.append({"role": ROLES[role], **_said(message, where, template)})
    return read


def begun_answer(given: dict[str, Any], messages: Conversation) -> str | None:
    """What the last message begins an answer with, where a request wants that gone on with: by vLLM's word for it, or
    by DeepSeek's and Mistral's. messages: as read. Raises `Refusal`.
    """
    last, whole = given["messages"][-1], flag(given, "continue_final_message")
    new = given.get("add_generation_prompt") is None or flag(given, "add_generation_prompt")
    if not whole and not flag(last, "prefix"):
        if not new:
            raise wrong("add_generation_prompt", "has to be true where no answer is gone on with")
        return None
    if whole and new and given.get("add_generation_prompt") is not None:
        raise wrong("add_generation_prompt", "has to be false beside continue_final_message")
    where = f"messages[{len(messages) - 1}]"
    if last.get("role") != "assistant" or last.get("tool_calls") or not messages[-1]["content"] or len(messages) < 2:
        raise wrong(where, "has to be an assistant's text that follows another message, to be gone on with")
    return messages[-1]["content"]


def tells_of_calls(given: dict[str, Any]) -> bool:
    """Whether messages do, whatever else they are."""
    messages = given.get("messages")
    told = [one for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
    return any(one.get("role") == "tool" or one.get("tool_calls") for one in told)


def is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """True is no 1 here."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _said(message: dict[str, Any], where: str, template: str) -> dict[str, Any]:
    """A message without its role."""
    more = {name: one for name, one in message.items() if name in template and name not in READ_HERE}
    content, answers = message.get("content"), message["role"] == "assistant"
    calls = read_calls(message.get("tool_calls") or [], f"{where}.tool_calls")
    if (calls or message["role"] == "tool") and "tool" not in template:
        raise wrong(where, "is about calls of tools, which this model's chat template does not know")
    if calls:
        more["tool_calls"] = calls
    thought = next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)
    if content is None and answers:
        content = message.get("refusal") or ""  # an answer may be a call, or end within thoughts
    said = _content(content, f"{where}.content", ("text", "refusal") if answers else ("text",))
    if thought is not None:
        more |= dict.fromkeys(REASONING, thought)
        if OWN_WORD in template and not said.strip():
            more.setdefault(OWN_WORD, thought)
    return {"content": said, **more}


def _content(content: Any, where: str, kinds: tuple[str, ...]) -> str:
    """A text, or parts of one."""
    if isinstance(content, list):
        parts = [
            part.get(part["type"]) if isinstance(part, dict) and part.get("type") in kinds else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise wrong(where, "has a part that is no text; this model reads nothing else")
        content = "".join(parts)
    if not isinstance(content, str):
        raise wrong(where, "has to be a text")
    check_unicode(content, where)
    return content
