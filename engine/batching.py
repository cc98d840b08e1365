"""Several texts written at once: every step reads one token of each, and some of the prompt of one that is to follow.

A step of several tokens costs little more than one of a single token, since weights are read once. What a text gets
does not depend on the others (csrc/common/decoder.h), so that prompts may be cut in any way, and what two texts begin
with is read once. Where a text is alone, a draft may fill the step with tokens that it proposes (engine/drafting.py).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine.decoder import check_finite
from engine.drafting import Draft, Drafted, Drafting, together
from engine.generate import greedy
from engine.places import Places
from engine.rules import Adjust
from engine.stopping import Ended
from engine.worth import MOST
from qlinear.backends.stack import Reading, StackDecoder
from qlinear.errors import AwqError, ModelError, OptionError

# Tokens of a prompt that are read in one step while others wait for their next token.
BESIDE_OTHERS = 96


class Full(AwqError):
    """There is no room for another text to wait."""


class Closed(AwqError):
    """No more texts are taken."""


class Listener(Protocol):
    """Told of one text as it is written, in the thread that writes."""

    def wrote(self, token: int, logits: np.ndarray) -> bool:
        """A token, and what it was chosen from `(vocabulary,)`, good during the call; gives whether to go on."""
        ...

    def ended(self, how: Ended, error: Exception | None) -> None:
        """The last that is told; error: what ended it, if something did."""
        ...


@dataclass(frozen=True)
class Asked:
    """What is to be written after a prompt `(length,)` int64: up to `max_new_tokens`, or as many as there is room for.

    An end token is told of too. choose, adjust: as for `engine.generate`.
    """

    prompt: np.ndarray
    max_new_tokens: int
    end_tokens: frozenset[int] = frozenset()
    choose: Callable[[np.ndarray], int] = greedy
    adjust: Adjust | None = None


@dataclass
class Counts:
    """Since the beginning. read: tokens of prompts; known: those that needed no reading; busy: seconds in steps;
    drafted: of texts that have ended, the steps that they were alone in.
    """

    read: int = 0
    known: int = 0
    written: int = 0
    steps: int = 0
    busy: float = 0.0
    ended: dict[Ended, int] = field(default_factory=lambda: dict.fromkeys(Ended, 0))
    failed: int = 0
    drafted: Drafted = together([])


class Text:
    """One that waits, is read or is written; `cancel` ends it at the next step, from any thread."""

    def __init__(self, asked: Asked, listener: Listener, room: int, draft: Draft | None):
        self.asked, self.listener = asked, listener
        length = len(asked.prompt)
        self.last = min(length + asked.max_new_tokens, room)  # where it ends for want of tokens, or of room
        self.cut = Ended.LENGTH if length + asked.max_new_tokens <= room else Ended.CONTEXT
        self.tokens = np.concatenate([asked.prompt, np.zeros(self.last - length, np.int64)])
        self.length = length  # of the prompt and what was written
        self.known = self.taken = 0  # of those, how many its slot holds, and how many it held at first
        self.ahead = 0  # tokens proposed to follow them, that a step reads with them
        self.drafting = draft and draft.for_text()
        self.slot = -1
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Batch:
    """Writes texts on a decoder of its own, in a thread of its own."""

    def __init__(self, decoder: StackDecoder, most_waiting: int, draft: Draft | None = None):
        """most_waiting: texts that may wait, beside those that have a slot."""
        self.decoder, self.most_waiting, self.draft = decoder, most_waiting, draft
        self.counts = Counts()
        self._changed = threading.Condition()
        self._waiting: deque[Text] = deque()
        self._coming: Text | None = None  # its prompt is being read
        self._running: list[Text] = []
        self._places = Places(decoder.slots)
        self._logits = np.empty((max(decoder.slots, 1 + MOST), decoder.vocabulary), np.float32)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batch", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return len(self._running) + (self._coming is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, asked: Asked, listener: Listener) -> Text:
        """Have a text written. Raises `OptionError` for what there is no room for, `Full`, and `Closed`."""
        length = len(asked.prompt)
        if not 0 < length < self.decoder.max_tokens or asked.max_new_tokens < 1:
            raise OptionError(
                f"a prompt of {length} tokens and `max_new_tokens={asked.max_new_tokens}`: there is room for 1 to "
                f"{self.decoder.max_tokens - 1}, and a token at least"
            )
        if asked.prompt.min() < 0 or asked.prompt.max() >= self.decoder.vocabulary:
            raise OptionError(f"token ids have to be in [0, {self.decoder.vocabulary})")
        text = Text(asked, listener, self.decoder.max_tokens, self.draft)
        with self._changed:
            if self._closed:
                raise Closed("no more texts are taken: this is about to end")
            if len(self._waiting) >= self.most_waiting + self.decoder.slots - self.running:
                raise Full(f"{self.running} texts are being written and {len(self._waiting)} wait; try again later")
            self._waiting.append(text)
            self._changed.notify_all()
        return text

    def close(self, seconds: float = 0.0) -> None:
        """Take no more; those that are not at their end after so many seconds are cancelled."""
        until = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            for text in self._all():
                text.cancel()
        self._thread.join()

    def _all(self) -> list[Text]:
        return [*self._running, *([self._coming] if self._coming else []), *self._waiting]

    def _work(self) -> None:
        while self._next():
            start = time.perf_counter()
            try:
                self._step(*self._plan())
            except Exception as error:  # whatever it is, nobody is to wait for ever
                for text in (*self._running, *([self._coming] if self._coming else [])):
                    self._places.forget(text.slot)
                    self._end(text, Ended.INTERRUPTED, error)
            self.counts.steps += 1
            self.counts.busy += time.perf_counter() - start

    def _next(self) -> bool:
        """Wait for something to do; False once there never will be."""
        with self._changed:
            while True:
                for text in [text for text in self._all() if text.cancelled]:
                    self._end(text, Ended.INTERRUPTED)
                if self._coming is None and self._waiting and len(self._running) < self.decoder.slots:
                    self._coming = self._waiting.popleft()
                if self._running or self._coming:
                    return True
                if self._closed:
                    return False
                self._changed.wait()

    def _settle(self, text: Text) -> None:
        """Give it a slot, with what others have read of its prompt."""
        taken = self._places.take(text.asked.prompt)
        text.slot = taken.slot
        if taken.source != taken.slot:
            self.decoder.copy(taken.source, taken.slot, taken.known)
        text.known = text.taken = taken.known
        self.counts.known += taken.known

    def _plan(self) -> tuple[list[Reading], list[Text]]:
        """What a step reads, and whose logits it gives."""
        if self._coming is not None and self._coming.slot < 0:
            self._settle(self._coming)
        texts = list(self._running)
        for text in texts:
            text.ahead = 0
        if len(texts) == 1 and self._coming is None and texts[0].drafting:
            self._look_ahead(texts[0])
        readings = [self._reading(text, text.length + text.ahead) for text in texts]
        if (coming := self._coming) is not None:
            room = self.decoder.chunk - len(texts)
            end = min(coming.length, coming.known + (min(room, BESIDE_OTHERS) if texts else room))
            readings.append(self._reading(coming, end))
            self.counts.read += end - coming.known
            if end == coming.length:
                texts.append(coming)
        return readings, texts

    def _look_ahead(self, text: Text) -> None:
        room = min(text.last - text.length, self.decoder.chunk) - 1
        proposed = text.drafting.propose(text.tokens[: text.length], room)
        text.ahead = len(proposed)
        text.tokens[text.length : text.length + text.ahead] = proposed

    def _reading(self, text: Text, end: int) -> Reading:
        rows = 0 if end < text.length else 1 + text.ahead
        return Reading(text.tokens[text.known : end], text.known, rows, text.slot)

    def _step(self, readings: list[Reading], texts: list[Text]) -> None:
        alone = texts[0].drafting if len(readings) == len(texts) == 1 and self._coming is None else None
        logits = self._logits[: sum(one.rows for one in readings)]
        self.decoder.read(readings, logits)
        if alone:
            alone.took()
        for text, reading in zip(self._running + [self._coming], readings, strict=False):
            text.known += len(reading.tokens) - text.ahead
            self._places.hold(text.slot, text.tokens[: text.known])
        if self._coming in texts:
            self._running.append(self._coming)
            self._coming = None
        first = 0
        for text in texts:
            rows = logits[first : first + 1 + text.ahead]
            first += len(rows)
            try:
                how = self._write_rows(text, rows, alone)
            except Exception as error:  # of this text alone, the others go on
                self._end(text, Ended.INTERRUPTED, error)
                continue
            if how is not None:
                self._end(text, how)

    def _write_rows(self, text: Text, rows: np.ndarray, drafting: Drafting | None) -> Ended | None:
        """The token after each row, up to the first that is not the one proposed; how the text ends, if it does."""
        for row, logits in enumerate(rows):
            proposed = int(text.tokens[text.length]) if row < text.ahead else None
            how, token = self._write(text, logits)
            if drafting:
                drafting.wrote(token == proposed)
            if how is not None or token != proposed:
                return how
            text.known += 1
            self._places.hold(text.slot, text.tokens[: text.known])
        return None

    def _write(self, text: Text, logits: np.ndarray) -> tuple[Ended | None, int]:
        """Choose its next token; how the text ends with it, if it does, and the token."""
        try:
            check_finite(logits)
        except ModelError:
            self._places.forget(text.slot)
            raise
        so_far, adjust = text.tokens[: text.length], text.asked.adjust
        token = text.asked.choose(logits if adjust is None else adjust(so_far, logits))
        if not 0 <= token < len(logits):  # before it is read with those of others
            raise ValueError(f"token {token} was chosen of {len(logits)}")
        self.counts.written += 1
        goes_on = text.listener.wrote(token, logits)
        if token in text.asked.end_tokens:
            return Ended.END, token
        if not goes_on:
            return Ended.STOP, token
        if text.length + 1 >= text.last:
            return text.cut, token
        text.tokens[text.length] = token
        text.length += 1
        return None, token

    def _end(self, text: Text, how: Ended, error: Exception | None = None) -> None:
        if text in self._running:
            self._running.remove(text)
        elif text is self._coming:
            self._coming = None
        else:
            self._waiting.remove(text)
        self._places.free(text.slot)
        self.counts.ended[how] += 1
        self.counts.failed += error is not None
        if text.drafting:
            self.counts.drafted = together([self.counts.drafted, text.drafting.drafted])
        with suppress(Exception):  # what it makes of that is its own: others go on
            text.listener.ended(how, error)
