"""How an answer ends; texts at which it does, found as it is written, however its tokens cut them."""

from collections.abc import Sequence
from enum import StrEnum

from qlinear.errors import OptionError

LONGEST_TAIL = 1000  # characters


class Ended(StrEnum):
    """By the model's end token, at a stop text, at the tokens that were asked for, for want of room, or by the user."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"
    INTERRUPTED = "interrupted"


class StopTexts:
    """Pieces of an answer in, the same out up to where the first of the stop texts begins.

    What may be the beginning of one is held back until it is known. What comes out together does not depend on how the
    answer is cut into pieces: the stop text that is complete first ends it, the longer one of two.
    """

    def __init__(self, texts: Sequence[str]):
        """Raises `OptionError` for an empty one."""
        if "" in texts:
            raise OptionError("`stop` '' is empty; give some text")
        self.texts = tuple(texts)
        self._held = ""
        self.which: str | None = None  # that was found

    @property
    def found(self) -> bool:
        return self.which is not None

    def add(self, piece: str) -> str:
        """What of the answer is known to come before any stop text; nothing once one was found."""
        if self.found:
            return ""
        text = self._held + piece
        ends = [(start + len(stop), start) for stop in self.texts if (start := text.find(stop)) >= 0]
        if ends:
            end, start = min(ends)
            self.which, self._held = text[start:end], ""
            return text[:start]
        held = max((_overlap(text, stop) for stop in self.texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held back, once the answer has ended without a stop text."""
        held, self._held = self._held, ""
        return held


def open_end(text: str, mark: str) -> int:
    """Where a tail begins that may belong to a mark: spaces, and what the mark begins with; not all of many spaces."""
    tail = text[-LONGEST_TAIL:]
    return len(text) - len(tail) + len(tail[: len(tail) - _overlap(tail, mark)].rstrip())


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop text begins with; not all of it."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
