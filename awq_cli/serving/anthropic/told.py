"""An answer in the shape of Anthropic's API of messages: blocks, and the events that tell how they come about."""

import json
import secrets
from typing import Any, ClassVar

from awq_cli.serving.answers import Usage, Written, call_id
from awq_cli.serving.bodies import Call
from awq_cli.serving.hearing import Piece
from awq_cli.serving.refusals import Refusal

# By the status of HTTP; of any other of the client's, that its request is invalid.
ERRORS = {
    401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    500: "api_error", 503: "overloaded_error",
}  # fmt: skip

Event = dict[str, Any]


def error_body(refusal: Refusal) -> dict[str, Any]:
    kind = ERRORS.get(refusal.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": refusal.message}}


class Message:
    """`answers.Shape` of one answer. most: tokens that the request allows."""

    end = b""
    idle: ClassVar[list[Event]] = [{"type": "ping"}]

    def __init__(self, model: str, given: dict[str, Any]):
        self._most = given["max_tokens"]
        self._about = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._content: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # a text or thoughts, which more may be added to
        self._spaces = ""  # before what may become a text
        self._finish, self._stopped = "stop", None

    def whole(self, answers: list[Written], usage: Usage) -> dict[str, Any]:
        (answer,) = answers
        for piece in answer.pieces:
            self.chunk(0, piece)
        self.last(0, answer.finish, answer.stopped)
        return {**self._about, "content": self._content, **self._reason(usage), "usage": _usage(usage)}

    def opening(self, count: int, usage: Usage) -> list[Event]:
        begun = {**self._about, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(usage)}
        return [{"type": "message_start", "message": begun}]

    def chunk(self, number: int, piece: Piece) -> list[Event]:
        events = self._add("thinking", piece.thought) if piece.thought else []
        self._spaces += piece.text
        if self._spaces.strip() or (self._open is not None and self._open["type"] == "text" and self._spaces):
            events += self._add("text", self._spaces)
            self._spaces = ""
        for call in piece.calls:
            events += self._called(call)
        return events

    def last(self, number: int, finish: str, stopped: str | None) -> list[Event]:
        self._finish, self._stopped = finish, stopped
        alone = self._spaces and self._open is None and not self._content
        return [*(self._add("text", self._spaces) if alone else []), *self._close()]

    def closing(self, usage: Usage, wanted: bool) -> list[Event]:
        """The usage is told in any case."""
        told = {"type": "message_delta", "delta": self._reason(usage), "usage": _usage(usage)}
        return [told, {"type": "message_stop"}]

    def failed(self, refusal: Refusal) -> Event:
        return error_body(refusal)

    def _reason(self, usage: Usage) -> dict[str, Any]:
        if self._finish == "length":
            room = usage.completion_tokens >= self._most
            reason = "max_tokens" if room else "model_context_window_exceeded"
        elif any(block["type"] == "tool_use" for block in self._content):
            reason = "tool_use"
        else:
            reason = "end_turn" if self._stopped is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": self._stopped if reason == "stop_sequence" else None}

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "index": len(self._content), **more}

    def _add(self, kind: str, text: str) -> list[Event]:
        """To a block of a kind, which begins where another was being written."""
        events: list[Event] = []
        if self._open is None or self._open["type"] != kind:
            events = self._close()
            self._open = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            events.append(self._event("content_block_start", content_block=dict(self._open)))
        self._open[kind] += text
        return [*events, self._event("content_block_delta", delta={"type": f"{kind}_delta", kind: text})]

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        event = self._event("content_block_stop")
        self._content.append(self._open)
        self._open = None
        return [event]

    def _called(self, call: Call) -> list[Event]:
        self._spaces = ""
        events = self._close()
        block: dict[str, Any] = {"type": "tool_use", "id": call_id(), "name": call.name}
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        events += [
            self._event("content_block_start", content_block={**block, "input": {}}),
            self._event("content_block_delta", delta=delta),
            self._event("content_block_stop"),
        ]
        self._content.append({**block, "input": json.loads(call.arguments)})
        return events


def _usage(usage: Usage) -> dict[str, Any]:
    """As this API has it, what was known is not among what was read."""
    return {
        "input_tokens": usage.prompt_tokens - usage.known_tokens,
        "cache_read_input_tokens": usage.known_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
