"""Chat templates, which are programs of the model's maker: rendered in a process of its own, with bounds."""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from engine.apart import Helper, Outcome, apart
from qlinear.errors import OptionError

# Models' own templates take some milliseconds and some megabytes.
SECONDS = 10
MOST_CHARACTERS = 10**7
LONG_ENOUGH = 40  # characters of a message that stand in a prompt by no chance

DATE = (2026, 1, 1)  # where what is made of a text has to stay the same
# Of a conversation: role and content, and what else a template may look for, as calls of tools.
Message = dict[str, Any]
Conversation = list[Message]
# What else a template sees, by its names for it: `tools`, and what a model's own may look for.
Seen = Mapping[str, Any]
# Messages in, the prompt that the model's chat template makes of them out.
Render = Callable[[Conversation, Seen], str]
NOTHING: Seen = {}

_BEGIN = "`chat`: the model's chat template"
_END = "mend it, or use `chat=False`"


def has_template(tokenizer: Any) -> bool:
    """Whether there is one that `render` takes."""
    template = tokenizer.chat_template
    return "default" in template if isinstance(template, dict) else bool(template)


def template_of(tokenizer: Any, tools: bool = False) -> str:
    """The source of the template that is taken, empty where there is none."""
    template = tokenizer.chat_template or ""
    if isinstance(template, dict):
        own = template.get("tool_use") if tools else None
        template = own or template.get("default") or ""
    return template


def render(tokenizer: Any, messages: Conversation, seen: Seen = NOTHING) -> str:
    """The prompt that the tokenizer's chat template makes of messages, up to where the answer is to begin.

    Raises `OptionError` where there is no template, none called default among several, or it fails or has no end.
    """
    template = tokenizer.chat_template
    if not template:
        raise OptionError("`chat`: this model's tokenizer has no chat template; use `chat=False`")
    if isinstance(template, dict) and "default" not in template:
        names = ", ".join(sorted(map(str, template)))
        raise OptionError(f"`chat`: the model has chat templates {names}, but none is called default; use `chat=False`")
    return _apart(_answer, tokenizer, (messages, dict(seen)))


def render_whole(tokenizer: Any, conversations: Sequence[Conversation]) -> list[str | None]:
    """What the tokenizer's chat template makes of conversations that are at their end; None of one that it refuses.

    To templates that look at the date it is always the same one. Raises `OptionError` as `render` does.
    """
    return _apart(_answer_whole, tokenizer, conversations)


def _apart(answer: Callable[[Any, Any], Outcome], tokenizer: Any, asked: Any) -> Any:
    """What a function makes in a process of its own. Raises `OptionError`."""
    made, failed = apart(answer, tokenizer, asked, seconds=SECONDS)
    if failed is not None:
        raise OptionError(f"{_BEGIN} {failed}; {_END}")
    return made


class Renderer(Helper):
    """`render` for a process of many threads."""

    def __init__(self, tokenizer: Any):
        super().__init__(partial(_rendered, tokenizer), "jinja2.sandbox")

    def __call__(self, messages: Conversation, seen: Seen = NOTHING) -> str:
        """Raises `OptionError` as `render` does; from any thread, one text at a time."""
        made, failed = self.ask((messages, dict(seen)))
        if failed is not None:
            raise OptionError(failed)
        return made


def _rendered(tokenizer: Any, asked: tuple[Conversation, dict[str, Any]]) -> Outcome:
    """In the helper."""
    messages, seen = asked
    try:
        return render(tokenizer, messages, seen), None
    except OptionError as error:
        return None, str(error)


def _answer_whole(tokenizer: Any, conversations: Sequence[Conversation]) -> Outcome:
    """In the other process."""
    made = []
    _stop_the_clock()
    for messages in conversations:
        try:
            made.append(_rendered_by(tokenizer, messages, NOTHING))
        except MemoryError:
            raise
        except Exception:  # whatever a program may raise
            made.append(None)
    return made, None


def _stop_the_clock() -> None:
    """For templates that `transformers` renders in this process; it hands them a function for the date."""
    from transformers.utils import chat_template_utils

    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Still":
            return cls(*DATE, tzinfo=tz)

    chat_template_utils.datetime = Still


def _rendered_by(tokenizer: Any, messages: Conversation, how: Seen) -> str:
    """A text by the template, which may want what is said as a list of parts: those of models that see pictures do.

    Raises what the template does, and ValueError where what the model is asked last, or told first, comes to nothing.
    """

    def made(messages: Sequence[Any]) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, **how)

    text, failed = "", None
    try:
        text = made(messages)
    except MemoryError:
        raise
    except Exception as error:  # whatever a program may raise
        failed = error
    if failed is None and not _worth_a_look(template_of(tokenizer), messages, text):
        return text
    lost = [] if failed is not None else [role for role in TOLD if _is_lost(made, messages, role, text)]
    if failed is None and not lost:
        return text
    for roles in ({one["role"] for one in messages}, set(lost)):
        parts = [{**one, "content": _parts(one["content"])} if one["role"] in roles else one for one in messages]
        with suppress_all_but(MemoryError):
            found = made(parts)
            if PART not in found and not any(_is_lost(made, parts, role, found) for role in TOLD):
                return found
    raise failed or ValueError(f"it passes over what the model {TOLD[lost[0]]}")


# By roles, what a prompt cannot do without.
TOLD = {"user": "is asked", "system": "is told first"}
PART = "{'type': 'text'"  # as Python shows one that a template took for a text


@contextmanager
def suppress_all_but(kind: type[Exception]) -> Iterator[None]:
    """Whatever a program may raise, but for one kind."""
    try:
        yield
    except kind:
        raise
    except Exception:
        return


def _worth_a_look(template: str, messages: Conversation, text: str) -> bool:
    """Whether something of the messages may not have come into a text: a short one is there by chance, too."""
    if not text or len(text) > MOST_CHARACTERS:
        return False
    least = LONG_ENOUGH if "content" in template and "is string" not in template else 0
    said = [messages[at]["content"].strip() for role in TOLD if (at := _place(messages, role)) is not None]
    return any(one and (len(one) < least or one not in text) for one in said)


def _place(messages: Sequence[Any], role: str) -> int | None:
    """Of what a user says last, and is answered next; of the first that the system says."""
    found = [number for number, one in enumerate(messages) if one["role"] == role]
    if role == "user":
        return found[-1] if found and found[-1] >= len(messages) - 2 else None
    return found[0] if found else None


def _is_lost(made: Callable[[Sequence[Any]], str], messages: Sequence[Any], role: str, text: str) -> bool:
    """Whether a text stays the same whatever is said there instead."""
    at = _place(messages, role)
    if at is None or not messages[at]["content"]:
        return False
    said = messages[at]["content"]
    plain = said if isinstance(said, str) else said[0]["text"]
    for other in (f"? {plain}", f"{plain} ?", "Something else."):
        content = other if isinstance(said, str) else _parts(other)
        with suppress_all_but(MemoryError):
            if made([*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :]]) == text:
                continue
        return False
    return True


def _parts(said: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": said}]


def _answer(tokenizer: Any, asked: tuple[Conversation, dict[str, Any]]) -> Outcome:
    """In the other process: what is made, or in words what went wrong."""
    messages, seen = asked
    try:
        made = _rendered_by(tokenizer, messages, {"add_generation_prompt": True, **seen})
    except MemoryError:
        raise
    except Exception as error:  # whatever a program may raise
        said = " ".join(str(error).split())[:300]
        if isinstance(error, RecursionError):
            said = said.partition(" while ")[0]  # what it was about to do then is chance
        return None, f"cannot be used: {type(error).__name__}{said and f': {said}'}"
    if len(made) > MOST_CHARACTERS:
        return None, f"makes {len(made)} characters of a prompt, more than {MOST_CHARACTERS}"
    return made, None
