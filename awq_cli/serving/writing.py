"""The answers to a request on their way to whoever asked, and what of them is told when."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from awq_cli.serving.answers import FINISHES, Shape, Usage, Written
from awq_cli.serving.asks import Ask
from awq_cli.serving.counting import Meters
from awq_cli.serving.hearing import Hearing, Piece
from awq_cli.serving.refusals import refusal_of
from engine.batching import Batch, Closed, Text
from engine.model import Model
from engine.stopping import Ended

NOBODY = -1  # of the answers
PATIENCE = 10.0  # seconds without an event, after which clients are told that there will be more


class Writing:
    """The answers to a request, written from here on, and cancelled where nobody wants them any more."""

    def __init__(self, ask: Ask, model: Model, batch: Batch, meters: Meters, begun: float):
        """begun: when the request was read, by `time.perf_counter`. Raises as `Batch.add` does."""
        self._meters, self._begun, self._ask, self._queue = meters, begun, ask, asyncio.Queue()
        self.count, self.with_usage = len(ask.choices), ask.with_usage
        self._hearings = [Hearing(model, ask, number, self._queue) for number in range(self.count)]
        self._texts: list[Text] = []
        try:
            for hearing in self._hearings:
                self._texts.append(hearing.begin(batch, model))
        except Exception:
            self._cancel()
            raise

    def _cancel(self) -> None:
        for text in self._texts:
            text.cancel()

    async def pieces(self, patience: float | None = None) -> AsyncIterator[tuple[int, Piece | None]]:
        """With the numbers of their answers; None where one has ended. Raises what ended one, if something did.

        patience: seconds after which it is told that there is nothing to tell, by `NOBODY`'s number.
        """
        left, first = self.count, True
        try:
            while left:
                try:
                    number, piece = await asyncio.wait_for(self._queue.get(), patience)
                except TimeoutError:
                    yield NOBODY, None
                    continue
                hearing = self._hearings[number]
                if first and (times := [one.first for one in self._hearings if one.first is not None]):
                    self._meters.first_token.observe(min(times) - self._begun)
                    first = False
                if piece is None:
                    left -= 1
                    if hearing.error is not None:
                        raise hearing.error
                    if hearing.how is Ended.INTERRUPTED:
                        raise Closed("the server ends")
                yield number, piece
            self._meters.whole.observe(time.perf_counter() - self._begun)
        finally:
            self._cancel()

    def _finish(self, number: int) -> str:
        hearing, calling = self._hearings[number], self._ask.calling
        finish = FINISHES[hearing.how]
        return calling.finish if calling is not None and hearing.called and finish == "stop" else finish

    def ended(self, number: int) -> tuple[str, str | None]:
        """How an answer did, and by which stop text, if by one."""
        return self._finish(number), self._hearings[number].stopped

    @property
    def usage(self) -> Usage:
        firsts: dict[int, Hearing] = {}  # of each prompt's answers, the one that was begun first
        for own, hearing in zip(self._ask.choices, self._hearings, strict=True):
            firsts.setdefault(id(own.prompt), hearing)
        return Usage(
            self._ask.prompt_tokens,
            sum(hearing.tokens for hearing in self._hearings),
            sum(hearing.taken for hearing in firsts.values()),
            sum(hearing.thoughts for hearing in self._hearings),
        )


async def whole(writing: Writing, shape: Shape) -> dict[str, Any]:
    found: list[list[Piece]] = [[] for _ in range(writing.count)]
    async with aclosing(writing.pieces()) as pieces:
        async for number, piece in pieces:
            found[number] += [] if piece is None else [piece]
    answers = [Written(pieces, *writing.ended(number)) for number, pieces in enumerate(found)]
    return shape.whole(answers, writing.usage)


async def events(writing: Writing, shape: Shape) -> AsyncIterator[bytes]:
    """Server-sent events; what goes wrong after the first has been sent is the last of them."""
    async with aclosing(writing.pieces(PATIENCE if shape.idle else None)) as pieces:
        try:
            for event in shape.opening(writing.count, writing.usage):
                yield _event(event)
            async for number, piece in pieces:
                if number == NOBODY:
                    told = shape.idle
                else:
                    ended = piece is None
                    told = shape.last(number, *writing.ended(number)) if ended else shape.chunk(number, piece)
                for event in told:
                    yield _event(event)
        except Exception as error:  # the status has been sent: an event is all that is left to say it with
            yield _event(shape.failed(refusal_of(error)))
            return
    for event in shape.closing(writing.usage, writing.with_usage):
        yield _event(event)
    if shape.end:
        yield shape.end


def _event(content: dict[str, Any]) -> bytes:
    """Of a kind, where it has one."""
    kind = f"event: {content['type']}\n" if "type" in content else ""
    return f"{kind}data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()
