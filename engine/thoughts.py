"""What a model thinks before it answers, told apart from the answer as both are written.

Models that do are known by their chat templates, which name the marks that thoughts stand between.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.stopping import open_end

LAST = 32  # tokens of a prompt that tell whether it ends within thoughts: a mark may be one for each letter
MOST_SPACES = 1000  # before what may be a thought
MOST_HEAD = 200  # characters of what stands before a part
TO = "to=functions."
_CALLED = re.compile(rf"(?:^|\s){re.escape(TO)}([\w.-]{{1,64}})")


@dataclass(frozen=True)
class Marks:
    """begin, end: what thoughts stand between; tokens: special tokens that those are written with; told: what templates
    say, if not the end; parts: whether all that is written comes in parts, each with a head of its own.
    """

    begin: str
    end: str
    tokens: tuple[str, ...] = ()
    told: str = ""
    parts: bool = False


START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CONSTRAIN = "<|constrain|>"  # before the kind of what a part holds
TO_FUNCTION = f"{CHANNEL}commentary {TO}"  # what a part that calls one begins with
MARKS = (
    Marks("<think>", "</think>"),  # of Qwen, DeepSeek and most others
    Marks("[THINK]", "[/THINK]"),  # of Mistral
    Marks("<|channel>thought", "<channel|>", tokens=("<|channel>", "<channel|>")),  # of Gemma 4
    Marks(f"{CHANNEL}analysis{MESSAGE}", END, (START, CHANNEL, MESSAGE, END), f"{CHANNEL}analysis", True),  # of gpt-oss
    Marks("<seed:think>", "</seed:think>"),  # of Seed-OSS
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # of Cohere
)


@dataclass(frozen=True)
class Thinking:
    """begun: whether the prompt ends behind the first mark; apart: whether thoughts are told apart, or left as text."""

    between: Marks
    begun: bool
    apart: bool = True

    @property
    def marks(self) -> frozenset[str]:
        """What must not be left out of the text where a tokenizer has it as a special token."""
        return frozenset({self.between.begin, self.between.end, *self.between.tokens})

    def reader(self, calls: bool = False) -> "ThoughtReader | PartReader | None":
        """Pieces of what a model writes in; what it thought and what it answered out. None where both are left.

        calls: whether the answer is read for calls of functions.
        """
        if not self.apart:
            return None
        return PartReader(self.begun, calls) if self.between.parts else ThoughtReader(self.between, self.begun)


def thinking_of(template: str, prompt: np.ndarray, tokenizer: Any) -> Thinking | None:
    """How a model thinks; None where its template does not tell, or has thought for it. prompt: ids `(length,)`."""
    marks = marks_of(template)
    if marks is None:
        return None
    last = tokenizer.decode(prompt[-LAST:].tolist(), skip_special_tokens=False).rstrip()
    return None if last.endswith(marks.end) and not marks.parts else Thinking(marks, last.endswith(marks.begin))


def marks_of(template: str) -> Marks | None:
    """Those that a template names, if it does."""
    return next((marks for marks in MARKS if (marks.told or marks.end) in template), None)


class ThoughtReader:
    """Spaces around thoughts are left out, and so are those between them and the answer. Thoughts come first or not at
    all: marks behind them are text, but for special tokens, of which no text is made. begun: as `Thinking`.
    """

    over = False  # nothing is thought any more

    def __init__(self, between: Marks, begun: bool):
        self._between, self._begun = between, begun
        self._inside = False
        self._bare = begun  # nothing has been given out of what is read now: leading spaces are left out
        self._held = ""

    def add(self, piece: str) -> tuple[str, str]:
        if self.over:
            return "", self._led(self._answer(piece))
        self._held += piece
        if not self._inside and not self._has_begun():
            return "", self._answer(self._taken()) if self.over else ""
        thought, there, answer = self._held.partition(self._between.end)
        if not there:
            kept = open_end(self._held, self._between.end)
            thought, self._held = self._held[:kept], self._held[kept:]
            return self._led(thought), ""
        thought, self._held = self._led(thought.rstrip()), ""
        self.over, self._bare = True, True
        return thought, self._led(self._answer(answer))

    def _has_begun(self) -> bool:
        """Past the first mark, if it stands here. Where no thoughts come all is over; till that is known it is not."""
        begin, held = self._between.begin, self._held.lstrip()
        if len(held) < len(begin) and begin.startswith(held) and len(self._held) < MOST_SPACES:
            return False
        there = held.startswith(begin)
        if there:
            self._held, self._bare = held[len(begin) :], True
        self._inside = there or self._begun
        self.over = not self._inside
        return self._inside

    def _answer(self, text: str) -> str:
        for token in self._between.tokens:
            text = text.replace(token, "")
        return text

    def end(self) -> tuple[str, str]:
        """What was held back, once nothing more comes."""
        held = self._taken()
        if (self._inside or self._begun) and not self.over:
            return self._led(held.rstrip()), ""
        return "", self._answer(held)

    def _taken(self) -> str:
        held, self._held = self._held, ""
        return held

    def _led(self, text: str) -> str:
        """Without spaces that come first."""
        text = text.lstrip() if self._bare else text
        self._bare = self._bare and not text
        return text


class PartReader:
    """Of what comes in parts (gpt-oss): a head says of each whether it is thought, and a mark ends it.

    Parts of a kind have an empty line between them. begun, calls: as `Thinking` and its reader; a part that calls a
    function is one of the answer, with one form of its head however that was written.
    """

    def __init__(self, begun: bool, calls: bool = False):
        self._in_head, self._thinks, self._calls = not begun, begun, calls
        self._heads = (START, CHANNEL, TO) if calls else (START, CHANNEL)
        self._held = self._head = ""
        self._bare, self._given = True, {True: False, False: False}  # of thoughts, of answers: whether there were some

    def add(self, piece: str) -> tuple[str, str]:
        self._held += piece
        out: dict[bool, str] = {True: "", False: ""}
        while self._past_head() if self._in_head else self._in_part(out):
            pass
        return out[True], out[False]

    def _past_head(self) -> bool:
        """Past one, or to a text that has none; False where more has to come first."""
        held = self._held.lstrip()
        if not held.startswith(self._heads):
            if any(mark.startswith(held) for mark in self._heads) and len(self._held) < MOST_SPACES:
                return False
            head, there, rest = "", "", held
        else:
            head, there, rest = held.partition(MESSAGE)
            if not there and len(head) <= MOST_HEAD:
                return False
            rest = rest if there else head.removeprefix(START).removeprefix(CHANNEL)
        called = _CALLED.search(head) if there and self._calls else None
        self._thinks = bool(there) and called is None and "analysis" in head
        self._head = "" if called is None else f"{TO_FUNCTION}{called[1]}{MESSAGE}"
        self._in_head, self._bare, self._held = False, bool(head), rest if head else self._held
        return True

    def _in_part(self, out: dict[bool, str]) -> bool:
        """All that there is of one; False where it has not ended."""
        ends = [at for mark in (START, CHANNEL, END) if (at := self._held.find(mark)) >= 0]
        kept = min(ends or [open_end(self._held, mark) for mark in (START, CHANNEL, END)])
        text, self._held = self._held[:kept], self._held[kept:]
        self._give(text.rstrip() if ends else text, out)
        if ends:
            self._in_head, self._held = True, self._held.removeprefix(END)
        return bool(ends)

    def _give(self, text: str, out: dict[bool, str]) -> None:
        text = text.lstrip() if self._bare else text
        if not text:
            return
        apart = "\n\n" if self._bare and self._given[self._thinks] else ""
        out[self._thinks] += apart + self._head + text
        self._bare, self._given[self._thinks], self._head = False, True, ""

    def end(self) -> tuple[str, str]:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        out: dict[bool, str] = {True: "", False: ""}
        if self._in_head and held.lstrip().startswith(self._heads):
            return "", ""
        self._thinks = self._thinks and not self._in_head
        self._give(held.rstrip() if self._thinks else held, out)
        return out[True], out[False]
