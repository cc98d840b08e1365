"""Calls of functions in notations other than JSON: Python's, and that of Gemma's templates.

Each text is walked once; what is nested deeper than calls are is none.
"""

import re
from collections.abc import Callable
from typing import Any

Named = tuple[str, dict[str, Any]]  # a function's name, and its arguments

CALL = "call:"
QUOTES = ('<|"|>', "<escape>")  # of Gemma 4, and of FunctionGemma: nothing within them is escaped
MOST_DEPTH = 50
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_CLOSES = {"[": "]", "(": ")"}
_SPACES = re.compile(r"\s*")
_NAMED = re.compile(r"\s*([\w.-]{1,64})\s*\(")
_GEMMA = re.compile(r"\s*call:\s*([\w.-]{1,64})\s*\{")
_KEY = re.compile(r"[^\s,:={}\[\]()]{1,200}")
_BARE = {"python": re.compile(r"[\w.+-]+"), "gemma": re.compile(r"[^,}\]]+")}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,300})(\.\d{1,300})?([eE][-+]?\d{1,3})?")
_QUOTED = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)
_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(rf"\\(?:u({_HEX}{{4}})|x({_HEX}{{2}})|U(000{_HEX}{{5}}|0010{_HEX}{{4}})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", "\\": "\\", "'": "'", '"': '"', "/": "/"}


def python_calls(text: str) -> list[Named] | None:
    """Of a list, as `[weather(city="Rome"), now()]`, or one after the other; None where anything else stands there.

    Arguments are named; words may be those of JSON, too.
    """
    walk, calls = _Walk(text, 0, "python"), []
    try:
        listed = walk.passed("[")
        while (head := walk.match(_NAMED)) is not None:
            calls.append((head[1], walk.pairs("=", ")", MOST_DEPTH)))
            walk.passed(",")
        ended = walk.passed("]") or not listed
    except ValueError:
        return None
    return calls if ended and walk.is_over and calls else None


def gemma_call(text: str, place: int) -> tuple[Named, int] | None:
    """That which begins at a place, as `call:weather{city:<|"|>Rome<|"|>,days:3}`, and where it ends."""
    walk = _Walk(text, place, "gemma")
    head = walk.match(_GEMMA)
    try:
        return None if head is None else ((head[1], walk.pairs(":", "}", MOST_DEPTH)), walk.place)
    except ValueError:
        return None


class _Walk:
    """Along a text. Raises ValueError where it is not what it has to be."""

    def __init__(self, text: str, place: int, notation: str):
        self._text, self.place, self._notation = text, place, notation

    @property
    def is_over(self) -> bool:
        return self._past_spaces() == len(self._text)

    def _past_spaces(self) -> int:
        self.place = _SPACES.match(self._text, self.place).end()
        return self.place

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self.place)
        self.place = self.place if found is None else found.end()
        return found

    def passed(self, mark: str) -> bool:
        """Whether it stands here, behind spaces; then it is passed."""
        there = self._text.startswith(mark, self._past_spaces())
        self.place += len(mark) if there else 0
        return there

    def _several(self, close: str, read: Callable[[], None]) -> None:
        """What has commas between, up to what closes it."""
        while not self.passed(close):
            read()
            if not self.passed(","):
                self._pass(close)
                return

    def _pass(self, mark: str) -> None:
        if not self.passed(mark):
            raise ValueError

    def pairs(self, between: str, close: str, depth: int) -> dict[str, Any]:
        """Keys and values, from behind what opens them on."""
        found: dict[str, Any] = {}

        def read() -> None:
            key = self._quoted()
            key = self._one(_KEY) if key is None else key
            self._pass(between)
            found[key] = self._value(depth)

        self._several(close, read)
        return found

    def _value(self, depth: int) -> Any:
        if not depth:
            raise ValueError
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        if self.passed("{"):
            return self.pairs(":", "}", depth - 1)
        for opens, close in _CLOSES.items():
            if self.passed(opens):
                return self._values(close, depth - 1)
        return self._plain(self._one(_BARE[self._notation]).strip())

    def _values(self, close: str, depth: int) -> list[Any]:
        found: list[Any] = []
        self._several(close, lambda: found.append(self._value(depth)))
        return found

    def _one(self, pattern: re.Pattern[str]) -> str:
        self._past_spaces()
        found = self.match(pattern)
        if found is None:
            raise ValueError
        return found[0]

    def _quoted(self) -> str | None:
        self._past_spaces()
        for quote in QUOTES:
            if self.passed(quote):
                end = self._text.index(quote, self.place)
                text, self.place = self._text[self.place : end], end + len(quote)
                return text
        found = self.match(_QUOTED)
        return None if found is None else _unescaped(found[0][1:-1])

    def _plain(self, word: str) -> Any:
        """What stands without quotes: a number, a word, and of Gemma a text."""
        if word in _WORDS:
            return _WORDS[word]
        number = _NUMBER.fullmatch(word)
        if number is not None:
            return float(word) if number[1] or number[2] else int(word)
        if self._notation == "python" or not word:
            raise ValueError
        return word


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def meant(found: re.Match[str]) -> str:
        code = found[1] or found[2] or found[3]
        return chr(int(code, 16)) if code else _ESCAPES.get(found[4], found[0])

    halves = _ESCAPE.sub(meant, text)  # of characters, where two escapes make one
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
