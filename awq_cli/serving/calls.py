"""Calls of tools in what a model writes, in the forms that models were taught; found as it is written.

A chat template that takes tools shows the model the form that it was taught, and names its marks: that is how the form
of a model is known (`form_of`). What a model writes may be whatever somebody wants it to: nothing here takes much more
time for twice the text, and what is no call after all is given out as the text that it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from awq_cli.serving.bodies import Call, leading_calls, may_begin
from awq_cli.serving.notations import QUOTES
from awq_cli.serving.written import Tools
from engine.stopping import open_end
from engine.thoughts import CHANNEL, CONSTRAIN, MESSAGE, TO_FUNCTION

MOST_TRIES = 32  # of one place in an answer: marks in texts that are written by a call


@dataclass(frozen=True)
class Form:
    """begin, end: what stands around a call; without an end it reaches to the next beginning, or the end of the answer;
    bare: whether an answer may be a call without either; told: what templates say of the form, if not its beginning;
    more: marks within calls.
    """

    begin: str
    end: str = ""
    bare: bool = False
    told: str = ""
    more: tuple[str, ...] = ()

    @property
    def marks(self) -> frozenset[str]:
        """What must not be left out of the text where a tokenizer has it as a special token."""
        return frozenset({self.begin, self.end, *self.more} - {""})

    def openings(self, tools: Tools) -> tuple[str, ...]:
        """What an answer that is a call begins with."""
        return (self.begin, *(f'{{"name": "{name}", "parameters": ' for name in tools if self.bare))


FORMS = (
    Form("<tool_call>", "</tool_call>"),  # of Hermes, Qwen, GLM, Granite 4 and many others
    Form("<|tool_call|>", "<|/tool_call|>"),  # of Granite 3, without the end, and of templates for Phi-4
    Form("[TOOL_CALLS]", more=("[ARGS]", "[CALL_ID]")),  # of Mistral
    Form("<|python_tag|>", bare=True, told='"parameters": dictionary'),  # of Llama 3.1 to 3.3
    Form("<|tool_call>", "<tool_call|>", more=QUOTES),  # of Gemma 4
    Form("<start_function_call>", "<end_function_call>", more=QUOTES),  # of FunctionGemma
    Form("<|tool_call_start|>", "<|tool_call_end|>"),  # of LFM2.5
    Form("<|tool_call_start|>", "<|tool_call_end|>", told="<|tool_list_start|>"),  # of LFM2, which names another mark
    Form(TO_FUNCTION, told="<|call|>", more=(CHANNEL, MESSAGE, CONSTRAIN)),  # of gpt-oss, whose answer ends with it
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
    """`Reader` of calls amid text. single: whether one call is all that is wanted."""

    form: Form
    tools: Tools
    single: bool = False
    over: bool = False
    _held: str = ""
    _before: str = ""  # spaces before the call that it may be in
    _inside: bool = False
    _looked: int = 0  # how far ends were looked for
    _tries: int = 0
    _found: int = 0
    _bare: bool = field(init=False)  # whether all so far may be a call without marks

    def __post_init__(self) -> None:
        self._bare = self.form.bare

    def add(self, piece: str) -> tuple[str, list[Call]]:
        if self.over:
            return "", []
        self._held += piece
        if self._bare:
            begun = self._held.lstrip()[: len(self.form.begin)]
            if not begun or begun[0] == "{" or self.form.begin.startswith(begun):
                return "", []
            self._bare = False
        texts: list[str] = []
        calls: list[Call] = []
        while not self.over and (self._in_call(texts, calls) if self._inside else self._in_text(texts)):
            pass
        return "".join(texts), calls

    def end(self) -> tuple[str, list[Call]]:
        held, self._held = self._held, ""
        if self.over:
            return "", []
        if self._bare:
            found = leading_calls(held.lstrip().removeprefix(self.form.begin), self.tools)
            if found and not found.rest.strip() and all(call.name in self.tools for call in found.calls):
                return "", self._kept(found.calls)
        elif self._inside:
            texts: list[str] = []
            calls: list[Call] = []
            self._read(held, "", texts, calls)
            return "".join(texts), calls
        return ("" if self._found and not held.strip() else held), []

    def _in_text(self, texts: list[str]) -> bool:
        """One step further in what is held, up to a beginning; False where more has to come first."""
        before, there, after = self._held.partition(self.form.begin)
        if there:
            text = before.rstrip()
            texts.append(text)
            self._held, self._before, self._inside, self._looked, self._tries = after, before[len(text) :], True, 0, 0
            return True
        kept = open_end(self._held, self.form.begin)
        if self._found and not self._held[:kept].strip():
            return False
        texts.append(self._held[:kept])
        self._held = self._held[kept:]
        return False

    def _in_call(self, texts: list[str], calls: list[Call]) -> bool:
        """The same from a beginning on, up to an end of what reads as a call; a mark in a text of it is none."""
        end = self.form.end
        if not may_begin(self._held, self.tools) or self._tries > MOST_TRIES:
            texts.append(self._before + self.form.begin)
            self._before, self._inside = "", False
            return True
        at = self._held.find(end, max(0, self._looked - len(end))) if end else -1
        if at < 0:
            self._looked = len(self._held)
            return False
        found = leading_calls(self._held[:at], self.tools)
        if found is None and may_begin(self._held[:at].rpartition(self.form.begin)[2], self.tools):
            self._looked, self._tries = at + 2 * len(end), self._tries + 1
            return True
        body, self._held, self._inside = self._held[:at], self._held[at + len(end) :], False
        self._read(body, end, texts, calls)
        return True

    def _read(self, body: str, end: str, texts: list[str], calls: list[Call]) -> None:
        """All that stands in what may be a call, or several without ends between them."""
        before, begin = self._before, self.form.begin
        self._before = ""
        for _ in range(MOST_TRIES):
            found = leading_calls(body, self.tools)
            text, there, after = (body if found is None else found.rest).partition(begin)
            if found is not None:
                calls += self._kept(found.calls)
                texts.append(text if text.strip() else "")
            else:
                texts.append(before + begin + text)
            if not there or self.over:
                break
            body, before = after, ""
        else:
            texts.append(begin + body)
            found = None
        if found is None:
            texts.append(end)

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
    _held: list[str] = field(default_factory=list)

    def add(self, piece: str) -> tuple[str, list[Call]]:
        self._held.append(piece)
        return "", []

    def end(self) -> tuple[str, list[Call]]:
        held = "".join(self._held)
        calls = self.read(held)
        return ("" if calls else held), calls
