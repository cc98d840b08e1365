"""Answers to prompts as they are written and told: one after the other, or several at once."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event

import numpy as np

from engine.batching import Asked, Batch
from engine.drafting import Drafted, Drafting
from engine.generate import Token, pace_ms
from engine.stopping import Ended, StopTexts
from engine.text import MarkedText
from qlinear.backends.stack import StackDecoder
from qlinear.progress import Watcher


@dataclass(frozen=True)
class Answering:
    """Told of when a prompt goes in, or, of several at once, before its answer.

    continued: what comes out follows it, as one text.
    """

    prompt: str
    continued: bool


@dataclass(frozen=True)
class Piece:
    """Some more of the answer, whole characters."""

    text: str


@dataclass(frozen=True)
class Response:
    """response: the answer, or what follows the prompt where it is continued; ttft_ms: prompt in to first token out;
    ms_per_token: of those after it (see `engine.generate.pace_ms`), None if there is none; draft: None where nothing
    proposed tokens.

    Prompts that are answered at once go in together, and wait for each other's tokens.
    """

    prompt: str
    response: str
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    ms_per_token: float | None
    ended: Ended
    draft: Drafted | None = None


class Answer:
    """What is written after one prompt, token by token."""

    def __init__(
        self,
        pieces: MarkedText,
        stop: StopTexts,
        end_tokens: frozenset[int],
        drafting: Drafting | None = None,
        cut: Ended = Ended.LENGTH,
    ):
        """cut: how it ends where it comes to no end of its own."""
        self._pieces, self._stop, self._end_tokens, self._drafting = pieces, stop, end_tokens, drafting
        self._cut = cut
        self._tokens: list[Token] = []
        self._parts: list[str] = []

    @property
    def is_over(self) -> bool:
        """Whether a stop text has come."""
        return self._stop.found

    def add(self, token: Token) -> str:
        """The text that a token completes."""
        self._tokens.append(token)
        return self._part(self._stop.add(self._pieces.add(token.id)))

    def end(self) -> str:
        """What was held back, once there are no more tokens."""
        return "" if self.is_over else self._part(self._stop.add(self._pieces.end()) + self._stop.end())

    def _part(self, text: str) -> str:
        self._parts.append(text)
        return text

    def told(self, prompt: str, prompt_tokens: int, written: Iterator[Token], watch: Watcher) -> Response:
        """The answer as it is written, told piece by piece."""
        for token in written:
            watch(Piece(self.add(token)))
            if self.is_over:
                break
        watch(Piece(self.end()))
        return self.response(prompt, prompt_tokens)

    def response(self, prompt: str, prompt_tokens: int) -> Response:
        """Once it has ended."""
        seconds = [token.seconds for token in self._tokens]
        drafted = self._drafting and self._drafting.drafted
        ended = Ended.END if self._tokens[-1].id in self._end_tokens else self._cut
        return Response(
            prompt,
            "".join(self._parts),
            prompt_tokens,
            len(self._tokens),
            seconds[0] * 1e3,
            pace_ms(seconds[1:], drafted),
            Ended.STOP if self.is_over else ended,
            drafted,
        )


class Hearing:
    """`engine.batching.Listener` of one answer."""

    def __init__(self, answer: Answer):
        self._answer, self._over, self._error = answer, Event(), None
        self._last = time.perf_counter()

    def wrote(self, token: int, logits: np.ndarray) -> bool:
        now = time.perf_counter()
        self._answer.add(Token(token, now - self._last))
        self._last = now
        return not self._answer.is_over

    def ended(self, how: Ended, error: Exception | None) -> None:
        self._error = error
        try:
            self._answer.end()
        except Exception as fault:  # whatever it is, nobody is to wait for ever
            self._error = error or fault
        self._over.set()

    def wait(self) -> None:
        """For its end; raises what ended it, if something did."""
        self._over.wait()
        if self._error is not None:
            raise self._error


def write_at_once(decoder: StackDecoder, asked: Sequence[Asked], answers: Sequence[Answer]) -> None:
    """Each answer to what was asked, as many at a time as the decoder has slots, up to the end of all."""
    batch = Batch(decoder, most_waiting=len(asked))
    try:
        heard = [Hearing(answer) for answer in answers]
        for one, hearing in zip(asked, heard, strict=True):
            batch.add(one, hearing)
        for hearing in heard:
            hearing.wait()
    finally:
        batch.close()
