"""What a model thinks before it answers, told apart from the answer as both are written.

Models that do are known by their chat templates, which name the marks that thoughts stand between.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from awq_cli.serving.fields import wrong
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.written import open_end

# Of Qwen, DeepSeek and most others, of Mistral, of Seed-OSS, of Cohere.
MARKS = (
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip
FORMATS = ("auto", "none", "deepseek")  # as llama.cpp's server calls them; the first and the last are the same here
LAST = 32  # tokens of a prompt that tell whether it ends within thoughts: a mark may be one for each letter
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


@dataclass(frozen=True)
class Thinking:
    """begin, end: the marks; begun: whether the prompt ends behind the first of them."""

    begin: str
    end: str
    begun: bool

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({self.begin, self.end})


def thinking_of(template: str, prompt: np.ndarray, tokenizer: Any) -> Thinking | None:
    """How a model thinks; None where its template does not tell. prompt: ids `(length,)`."""
    marks = _marks_of(template)
    if marks is None:
        return None
    last = tokenizer.decode(prompt[-LAST:].tolist(), skip_special_tokens=False)
    return Thinking(*marks, last.rstrip().endswith(marks[0]))


def told_apart(given: dict[str, Any]) -> bool:
    """Whether a request wants thoughts beside the answer. Raises `Refusal`."""
    wanted = given.get("reasoning_format")
    if wanted is not None and wanted not in FORMATS:
        raise wrong("reasoning_format", f"has to be one of {', '.join(FORMATS)}")
    return wanted != "none"


def effort_shown(given: dict[str, Any], template: str) -> dict[str, Any]:
    """What a template is to see of `reasoning_effort`. Raises `Refusal` where it would change nothing."""
    effort = given.get("reasoning_effort")
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise wrong("reasoning_effort", f"has to be one of {', '.join(EFFORTS)}")
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort}
    if "enable_thinking" in template:
        return {"enable_thinking": effort != "none"}
    if (effort == "none") != (_marks_of(template) is None):
        why = "this model's chat template has no say in that; leave it out"
        raise Refusal(400, f"reasoning_effort: {why}", "reasoning_effort", "unsupported_parameter")
    return {}


def _marks_of(template: str) -> tuple[str, str] | None:
    return next((marks for marks in MARKS if marks[1] in template), None)


class ThoughtReader:
    """Pieces of what a model writes in; what it thought and what it answered out.

    Spaces around thoughts are left out, and so are those between them and the answer. Thoughts come first or not at
    all: marks behind them are text.
    """

    def __init__(self, thinking: Thinking):
        self._thinking, self._inside = thinking, thinking.begun
        self._over = False
        self._bare = True  # nothing has been given out of what is read now: leading spaces are left out
        self._held = ""

    def add(self, piece: str) -> tuple[str, str]:
        if self._over:
            return "", self._led(piece)
        self._held += piece
        begin, end = self._thinking.begin, self._thinking.end
        if not self._inside:
            begun = self._held.lstrip()
            if len(begun) < len(begin) and begin.startswith(begun):
                return "", ""
            if not begun.startswith(begin):
                self._over, self._bare = True, False
                return "", self._taken()
            self._inside, self._held = True, begun[len(begin) :]
        thought, there, answer = self._held.partition(end)
        if there:
            thought = self._led(thought.rstrip())
            self._over, self._bare, self._held = True, True, ""
            return thought, self._led(answer)
        kept = open_end(self._held, end)
        thought, self._held = self._held[:kept], self._held[kept:]
        return self._led(thought), ""

    def end(self) -> tuple[str, str]:
        """What was held back, once nothing more comes."""
        held = self._taken()
        return (self._led(held.rstrip()), "") if self._inside and not self._over else ("", held)

    def _taken(self) -> str:
        held, self._held = self._held, ""
        return held

    def _led(self, text: str) -> str:
        """Without spaces that come first."""
        text = text.lstrip() if self._bare else text
        self._bare = self._bare and not text
        return text
