"""One answer on its way from the thread that writes it to the loop that sends it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from awq_cli.serving.asks import Ask
from awq_cli.serving.bodies import Call
from engine.batching import Asked, Batch, Text
from engine.model import Model
from engine.rules import both
from engine.stopping import Ended, StopTexts
from engine.text import answering
from engine.token_bytes import TokenBytes


@dataclass(frozen=True)
class Likely:
    """A token's text, its bytes if they can be told, and the natural logarithm of its probability."""

    token: str
    bytes: list[int] | None
    logprob: float


@dataclass(frozen=True)
class Told:
    """A token, and the likeliest at its place."""

    chosen: Likely
    top: list[Likely]


@dataclass(frozen=True)
class Piece:
    """Some more of an answer: whole characters, what was asked to be told of its tokens, calls of tools, and what was
    thought before it.
    """

    text: str
    told: list[Told]
    calls: list[Call] = field(default_factory=list)
    thought: str = ""


Heard = asyncio.Queue[tuple[int, Piece | None]]


class Hearing:
    """`engine.batching.Listener` of the answer of a number among those to one request; what it hears is put into a
    queue with its number, in the loop that it was made in: pieces, and None at the end.

    tokens: written so far; thoughts: those of them that were thought; taken: tokens of the prompt that needed no
    reading; first: when the first was written, by `time.perf_counter`; called: whether tools have been; how, error:
    once it has ended.
    """

    def __init__(self, model: Model, ask: Ask, number: int, queue: Heard):
        self._tokenizer, self._ask, self._end_tokens = model.tokenizer, ask, model.end_tokens
        self._own = ask.choices[number]
        self._number, self._loop, self._queue = number, asyncio.get_running_loop(), queue
        marks = [part.marks for part in (ask.calling, ask.thinking) if part is not None]
        self._pieces = answering(model.tokenizer, self._own.prompt, ask.chat, frozenset(ask.stop).union(*marks))
        self._stop = StopTexts(ask.stop)
        self._reader = ask.calling.reader() if ask.calling else None
        self._thoughts = ask.thinking.reader(calls=ask.calling is not None) if ask.thinking else None
        self._bytes = TokenBytes(model.tokenizer) if ask.top is not None else None
        self._held: list[Piece] = []  # where nobody reads along, all of it comes at the end
        self._told: deque[tuple[int, Told]] = deque()  # and where in the answer the token begins
        self._length = self._given = 0  # characters so far, and of those that are known to come before any stop text
        self.called = False
        self.tokens = self.thoughts = self._given_tokens = 0
        self._text: Text | None = None
        self.first: float | None = None
        self.how: Ended | None = None
        self.error: Exception | None = None

    def begin(self, batch: Batch, model: Model) -> Text:
        """Have it written; what is given may be cancelled. Raises as `Batch.add` does."""
        own = self._own
        rule = model.rules.for_text(len(own.prompt), own.max_new_tokens, own.repetition_penalty)
        adjust = both(rule, own.adjust)
        self._text = batch.add(Asked(own.prompt, own.max_new_tokens, self._end_tokens, own.choose, adjust), self)
        return self._text

    @property
    def stopped(self) -> str | None:
        """The stop text that ended it."""
        return self._stop.which

    @property
    def taken(self) -> int:
        return 0 if self._text is None else self._text.taken

    def wrote(self, token: int, logits: np.ndarray) -> bool:
        if self.first is None:
            self.first = time.perf_counter()
        self.tokens += 1
        if self._ask.top is not None and token not in self._end_tokens:
            self._told.append((self._length, self._tell(token, logits)))
        piece = self._pieces.add(token)
        self._length += len(piece)
        self._say(self._stop.add(piece), over=False)
        return not (self._stop.found or (self._reader is not None and self._reader.over))

    def _say(self, text: str, over: bool) -> None:
        """With what is to be told of the tokens of it; of those that a stop text begins before, nothing is."""
        self._given += len(text)
        whole = over or (self._given == self._length and not self._stop.found)
        told = []
        while self._told and (whole or self._told[0][0] < self._given):
            told.append(self._told.popleft()[1])
        thought, text = ("", text) if self._thoughts is None else self._thoughts.add(text)
        text, calls = (text, []) if self._reader is None else self._reader.add(text)
        self._give(Piece(text, told, calls, thought))

    def ended(self, how: Ended, error: Exception | None) -> None:
        try:
            if how is not Ended.INTERRUPTED:
                self._say_the_rest()
        except Exception as fault:  # whatever it is, nobody is to wait for ever
            error = error or fault
        self.how, self.error = Ended.STOP if self._stop.found and error is None else how, error
        self._send([*self._held, None])

    def _say_the_rest(self) -> None:
        """What was held back."""
        if not self._stop.found:
            self._say(self._stop.add(self._pieces.end()) + self._stop.end(), over=not self._stop.found)
        thought, text = ("", "") if self._thoughts is None else self._thoughts.end()
        calls: list[Call] = []
        if self._reader is not None:
            (text, calls), (more, others) = self._reader.add(text), self._reader.end()
            text, calls = text + more, [*calls, *others]
        self._give(Piece(text, [], calls, thought))

    def _give(self, piece: Piece) -> None:
        self.called = self.called or bool(piece.calls)
        if not (piece.text or piece.told or piece.calls or piece.thought):
            return
        if piece.thought:
            self.thoughts += self.tokens - self._given_tokens
        self._given_tokens = self.tokens
        if self._ask.stream:
            self._send([piece])
        else:
            self._held.append(piece)

    def _send(self, pieces: list[Piece | None]) -> None:
        def put() -> None:
            for piece in pieces:
                self._queue.put_nowait((self._number, piece))

        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop has ended, and with it whoever might have read
            return

    def _tell(self, token: int, logits: np.ndarray) -> Told:
        most = logits.max()
        scores = logits - (most + np.log(np.exp(logits - most, dtype=np.float64).sum()))
        count = min(self._ask.top or 0, len(logits))
        top = np.argpartition(-logits, count - 1)[:count] if count else np.empty(0, np.int64)
        likeliest = sorted(map(int, top), key=lambda one: (-logits[one], one))
        return Told(self._likely(token, scores), [self._likely(one, scores) for one in likeliest])

    def _likely(self, token: int, scores: np.ndarray) -> Likely:
        own = self._bytes(token)
        if own is not None:
            return Likely(own.decode("utf-8", "replace"), list(own), float(scores[token]))
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        whole = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode("utf-8"))
        return Likely(text, whole, float(scores[token]))
