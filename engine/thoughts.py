"""What a model thinks before it answers, told apart from the answer as both are written.

Models that do are known by their chat templates, which name the marks that thoughts stand between.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.stopping import open_end

LAST = 32  # tokens of a prompt that tell whether it ends within thoughts: a mark may be one for each letter


@dataclass(frozen=True)
class Marks:
    """begin, end: what thoughts stand between; answer: what may stand before the answer, one after the other;
    tokens: special tokens that the others are written with; told: what templates say, if not the end.
    """

    begin: str
    end: str
    answer: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    told: str = ""


MARKS = (
    Marks("<think>", "</think>"),  # of Qwen, DeepSeek and most others
    Marks("[THINK]", "[/THINK]"),  # of Mistral
    Marks("<|channel>thought", "<channel|>", tokens=("<|channel>",)),  # of Gemma 4
    Marks(  # of gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|>",
        answer=("<|start|>assistant", "<|channel|>final<|message|>"),
        tokens=("<|start|>", "<|channel|>", "<|message|>"),
        told="<|channel|>analysis",
    ),
    Marks("<seed:think>", "</seed:think>"),  # of Seed-OSS
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # of Cohere
)


@dataclass(frozen=True)
class Thinking:
    """begun: whether the prompt ends behind the first mark."""

    between: Marks
    begun: bool

    @property
    def marks(self) -> frozenset[str]:
        """What must not be left out of the text where a tokenizer has it as a special token."""
        return frozenset({self.between.begin, self.between.end, *self.between.tokens})


def thinking_of(template: str, prompt: np.ndarray, tokenizer: Any) -> Thinking | None:
    """How a model thinks; None where its template does not tell. prompt: ids `(length,)`."""
    marks = marks_of(template)
    if marks is None:
        return None
    last = tokenizer.decode(prompt[-LAST:].tolist(), skip_special_tokens=False)
    return Thinking(marks, last.rstrip().endswith(marks.begin))


def marks_of(template: str) -> Marks | None:
    """Those that a template names, if it does."""
    return next((marks for marks in MARKS if (marks.told or marks.end) in template), None)


class ThoughtReader:
    """Pieces of what a model writes in; what it thought and what it answered out.

    Spaces around thoughts are left out, and so are those between them and the answer. Thoughts come first or not at
    all: marks behind them are text.
    """

    def __init__(self, thinking: Thinking):
        between = thinking.between
        self._to_come = [] if thinking.begun else [between.begin]  # marks that may stand next, in their order
        self._inside, self._end, self._answer = thinking.begun, between.end, between.answer
        self._over = False
        self._bare = thinking.begun  # nothing has been given out of what is read now: leading spaces are left out
        self._held = ""

    def add(self, piece: str) -> tuple[str, str]:
        self._held += piece
        if not self._over and not self._inside:
            begun = self._past_marks()
            if begun is None:
                return "", ""
            self._inside, self._over = begun, not begun
            self._to_come = [] if begun else [*self._answer]
        thought = self._thought() if self._inside else ""
        if self._inside or self._past_marks() is None:
            return thought, ""
        return thought, self._led(self._taken())

    def _past_marks(self) -> bool | None:
        """Past those that may stand next, as far as they do: whether one did; None where that cannot be told yet."""
        passed = False
        while self._to_come:
            mark, held = self._to_come[0], self._held.lstrip()
            if len(held) < len(mark) and mark.startswith(held):
                return None
            self._to_come.pop(0)
            if held.startswith(mark):
                self._held, self._bare, passed = held[len(mark) :], True, True
        return passed

    def _thought(self) -> str:
        """More of it; inside, as long as it has not ended."""
        thought, there, answer = self._held.partition(self._end)
        if not there:
            kept = open_end(self._held, self._end)
            thought, self._held = self._held[:kept], self._held[kept:]
            return self._led(thought)
        thought = self._led(thought.rstrip())
        self._inside, self._over, self._bare = False, True, True
        self._to_come, self._held = [*self._answer], answer
        return thought

    def end(self) -> tuple[str, str]:
        """What was held back, once nothing more comes."""
        held = self._taken()
        return (self._led(held.rstrip()), "") if self._inside else ("", self._led(held))

    def _taken(self) -> str:
        held, self._held = self._held, ""
        return held

    def _led(self, text: str) -> str:
        """Without spaces that come first."""
        text = text.lstrip() if self._bare else text
        self._bare = self._bare and not text
        return text
