"""Answers in the shapes of OpenAI's API: at once, or as chunks of a stream."""

import secrets
import string
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from awq_cli.serving.bodies import Call
from awq_cli.serving.hearing import Likely, Piece, Told
from awq_cli.serving.refusals import Refusal
from engine.stopping import Ended

LETTERS = string.ascii_letters + string.digits
FINISHES = {Ended.END: "stop", Ended.STOP: "stop", Ended.LENGTH: "length", Ended.CONTEXT: "length"}


@dataclass(frozen=True)
class Usage:
    """known_tokens: of prompts, those that needed no reading; thought_tokens: of what was written."""

    prompt_tokens: int
    completion_tokens: int
    known_tokens: int = 0
    thought_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.known_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.thought_tokens},
        }


@dataclass(frozen=True)
class Written:
    """One of the answers to a request. stopped: the stop text that ended it, if one did."""

    pieces: list[Piece]
    finish: str
    stopped: str | None = None


class Shape(Protocol):
    """How one kind of answer looks: at once, or as the events of a stream. end: what comes after the last of them;
    idle: what is told where nothing comes for long.
    """

    end: bytes
    idle: list[dict[str, Any]]

    def whole(self, answers: list[Written], usage: Usage) -> dict[str, Any]: ...

    def opening(self, count: int, usage: Usage) -> list[dict[str, Any]]:
        """Before anything of the answers. usage: of the prompts."""
        ...

    def chunk(self, number: int, piece: Piece) -> list[dict[str, Any]]: ...

    def last(self, number: int, finish: str, stopped: str | None) -> list[dict[str, Any]]:
        """Of an answer."""
        ...

    def closing(self, usage: Usage, wanted: bool) -> list[dict[str, Any]]:
        """Behind all answers. wanted: whether the request asks for the usage."""
        ...

    def failed(self, refusal: Refusal) -> dict[str, Any]:
        """Instead of the rest."""
        ...


@dataclass
class _Answer:
    """prefix, kind, kind_of_chunk: of its id and of what it calls itself."""

    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    prefix = kind = kind_of_chunk = ""
    end = b"data: [DONE]\n\n"
    idle: ClassVar[list[dict[str, Any]]] = []

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    def _made(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**about, "choices": choices, **more}

    def closing(self, usage: Usage, wanted: bool) -> list[dict[str, Any]]:
        return [self._made(self.kind_of_chunk, [], usage=usage.as_json())] if wanted else []

    def failed(self, refusal: Refusal) -> dict[str, Any]:
        return refusal.body()


@dataclass
class Chat(_Answer):
    """called: calls of tools in each answer so far."""

    prefix, kind, kind_of_chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"
    called: Counter[int] = field(default_factory=Counter)

    def whole(self, answers: list[Written], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(number, answer) for number, answer in enumerate(answers)]
        return self._made(self.kind, choices, usage=usage.as_json())

    def _choice(self, number: int, answer: Written) -> dict[str, Any]:
        text, calls = _text(answer.pieces), [_call(call) for piece in answer.pieces for call in piece.calls]
        content = None if calls and not text else text
        message = {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}
        if thought := "".join(piece.thought for piece in answer.pieces):
            message["reasoning_content"] = thought
        told = _of_chat(answer.pieces)
        return {"index": number, "message": message, "logprobs": told, "finish_reason": answer.finish}

    def opening(self, count: int, usage: Usage) -> list[dict[str, Any]]:
        return [self._delta(number, {"role": "assistant", "content": ""}) for number in range(count)]

    def chunk(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        delta: dict[str, Any] = {"reasoning_content": piece.thought} if piece.thought else {}
        if piece.text or not (piece.calls or piece.thought):
            delta["content"] = piece.text
        if piece.calls:
            first = self.called[number]
            delta["tool_calls"] = [{"index": first + later, **_call(call)} for later, call in enumerate(piece.calls)]
            self.called[number] += len(piece.calls)
        return [self._delta(number, delta, _of_chat([piece]))]

    def last(self, number: int, finish: str, stopped: str | None) -> list[dict[str, Any]]:
        return [self._delta(number, {}, finish=finish)]

    def _delta(
        self, number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._made(self.kind_of_chunk, [choice])


@dataclass
class Completion(_Answer):
    """lengths: characters of each answer so far."""

    prefix, kind, kind_of_chunk = "cmpl", "text_completion", "text_completion"
    lengths: Counter[int] = field(default_factory=Counter)

    def whole(self, answers: list[Written], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(number, answer.pieces, answer.finish) for number, answer in enumerate(answers)]
        return self._made(self.kind, choices, usage=usage.as_json())

    def opening(self, count: int, usage: Usage) -> list[dict[str, Any]]:
        return []

    def chunk(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        return [self._made(self.kind, [self._choice(number, [piece], None)])]

    def last(self, number: int, finish: str, stopped: str | None) -> list[dict[str, Any]]:
        return [self._made(self.kind, [self._choice(number, [], finish)])]

    def _choice(self, number: int, pieces: list[Piece], finish: str | None) -> dict[str, Any]:
        logprobs = _of_completion(pieces, self.lengths[number])
        self.lengths[number] += len(_text(pieces))
        return {"index": number, "text": _text(pieces), "logprobs": logprobs, "finish_reason": finish}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_id() -> str:
    """Of nine letters and digits: templates there are that take no other."""
    return "".join(secrets.choice(LETTERS) for _ in range(9))


def _text(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _all_told(pieces: list[Piece]) -> list[Told]:
    return [told for piece in pieces for told in piece.told]


def _of_chat(pieces: list[Piece]) -> dict[str, Any] | None:
    told = _all_told(pieces)
    if not told:
        return None
    content = [{**likely(one.chosen), "top_logprobs": [likely(top) for top in one.top]} for one in told]
    return {"content": content, "refusal": None}


def likely(one: Likely) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": one.bytes}


def _of_completion(pieces: list[Piece], length: int) -> dict[str, Any] | None:
    """text_offset: where in the answer a token's piece begins."""
    told, offsets = _all_told(pieces), []
    if not told:
        return None
    for piece in pieces:
        offsets += [length] * len(piece.told)
        length += len(piece.text)
    return {
        "tokens": [_name(one.chosen) for one in told],
        "token_logprobs": [one.chosen.logprob for one in told],
        "top_logprobs": [{_name(top): top.logprob for top in one.top} for one in told],
        "text_offset": offsets,
    }


def _name(one: Likely) -> str:
    """Its text; of one that is no text by itself its bytes, or several of those would be the same."""
    if one.bytes is None or one.token.encode() == bytes(one.bytes):
        return one.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)
