"""An answer in the shape of OpenAI's API of responses: items, and the events that tell how they come about."""

import secrets
import time
from typing import Any, ClassVar

from awq_cli.serving.answers import Usage, Written, call_id, likely
from awq_cli.serving.bodies import Call
from awq_cli.serving.hearing import Piece, Told
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.responses.functions import functions_of
from awq_cli.serving.responses.kept import Kept
from awq_cli.serving.tools import is_search

ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "metadata": {}, "tools": [],
    "parallel_tool_calls": True, "tool_choice": "auto", "temperature": 1.0, "top_p": 1.0, "top_logprobs": 0,
    "user": None,
}  # fmt: skip
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
KINDS = {"message": "output_text", "reasoning": "reasoning_text"}  # of the one part of an item

Event = dict[str, Any]


class Replied:
    """`answers.Shape` of one answer. given: the request, of which much is told again; kept: where it goes then, unless
    the request wants it not to.
    """

    end = b""
    idle: ClassVar[list[Event]] = []

    def __init__(self, kept: Kept, model: str, given: dict[str, Any]):
        self._kept, self._asked = kept, kept.asked(given)
        told = {name: given[name] if given.get(name) is not None else usual for name, usual in ECHOED.items()}
        text, reasoning = given.get("text") or {}, given.get("reasoning") or {}
        self._functions = {function.shown: function for function in functions_of(given)}
        self._about: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **told,
            "tools": [tool for tool in told["tools"] if not is_search(tool)],  # those that the model is shown
            "text": {"format": {"type": "text"}, **text},
            "reasoning": {"effort": None, "summary": None, **reasoning},
            "truncation": "disabled",
            "background": False,
            "store": given.get("store") is not False,
            "previous_response_id": given.get("previous_response_id"),
        }
        self._output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None  # a message or thoughts, which more may be added to
        self._spaces, self._held = "", list[Told]()  # before what may become a message
        self._finish = "stop"
        self._sent = 0

    def whole(self, answers: list[Written], usage: Usage) -> dict[str, Any]:
        (answer,) = answers
        for piece in answer.pieces:
            self.chunk(0, piece)
        self.last(0, answer.finish, answer.stopped)
        return self._ended(usage)

    def opening(self, count: int, usage: Usage) -> list[Event]:
        begun = self._response("in_progress")
        return [self._event("response.created", response=begun), self._event("response.in_progress", response=begun)]

    def chunk(self, number: int, piece: Piece) -> list[Event]:
        """Tokens that nothing has come of yet are told of with what comes next, if that is of a message."""
        self._held += piece.told
        events = self._add("reasoning", piece.thought, []) if piece.thought else []
        if piece.text:
            events += self._said(piece.text)
        elif piece.thought or piece.calls:
            self._spaces, self._held = "", []
        for call in piece.calls:
            events += self._called(call)
        return events

    def last(self, number: int, finish: str, stopped: str | None) -> list[Event]:
        events: list[Event] = []
        if self._held or (self._item is None and not self._output):
            events += self._rest()
        self._finish = finish
        return events + self._close("incomplete" if finish == "length" else "completed")

    def closing(self, usage: Usage, wanted: bool) -> list[Event]:
        """The usage is told in any case."""
        response = self._ended(usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def failed(self, refusal: Refusal) -> Event:
        error = {"code": "server_error", "message": refusal.message}
        return self._event("response.failed", response={**self._response("failed"), "error": error})

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        told = {"status": status, "error": None, "incomplete_details": None, "completed_at": None, "usage": None}
        return {**self._about, **told, "output": list(self._output), **more}

    def _ended(self, usage: Usage) -> dict[str, Any]:
        told = _usage(usage)
        if self._finish == "length":
            response = self._response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=told)
        else:
            response = self._response("completed", completed_at=int(time.time()), usage=told)
        if response["store"]:
            self._kept.keep(self._asked, response)
        return response

    def _event(self, kind: str, **more: Any) -> Event:
        event = {"type": kind, "sequence_number": self._sent, **more}
        self._sent += 1
        return event

    def _of_item(self, kind: str, item: dict[str, Any], **more: Any) -> Event:
        return self._event(kind, item_id=item["id"], output_index=len(self._output), **more)

    def _said(self, text: str) -> list[Event]:
        """Spaces between thoughts and calls are no message."""
        self._spaces += text
        if (self._item is None or self._item["type"] != "message") and not text.strip():
            return []
        text, told = self._spaces, self._held
        self._spaces, self._held = "", []
        begun = self._item is not None and self._item["type"] == "message"
        return self._add("message", text, told if begun else _last(told, text))

    def _rest(self) -> list[Event]:
        """What no more text has come behind, where there is a message that it is of, or nothing else at all."""
        there = self._item is not None and self._item["type"] == "message"
        return self._add("message", self._spaces, self._held) if there or not (self._item or self._output) else []

    def _add(self, kind: str, text: str, told: list[Told]) -> list[Event]:
        """To an item of a kind, which begins where another was being written."""
        events: list[Event] = []
        if self._item is None or self._item["type"] != kind:
            events += self._close("completed") + self._begin(kind)
        assert self._item is not None
        (part,), more = self._item["content"], {}
        part["text"] += text
        if kind == "message":
            more["logprobs"] = [_told(one) for one in told]
            part["logprobs"] += more["logprobs"]
        delta = self._of_item(f"response.{part['type']}.delta", self._item, content_index=0, delta=text, **more)
        return [*events, delta]

    def _begin(self, kind: str) -> list[Event]:
        item = {"id": _name(kind), "type": kind, "status": "in_progress", "content": []}
        item |= {"role": "assistant"} if kind == "message" else {"summary": []}
        part: dict[str, Any] = {"type": KINDS[kind], "text": ""}
        part |= {"annotations": [], "logprobs": []} if kind == "message" else {}
        added = self._event("response.output_item.added", output_index=len(self._output), item=dict(item))
        self._item = {**item, "content": [part]}
        begun = {**part, "logprobs": []} if kind == "message" else dict(part)
        return [added, self._of_item("response.content_part.added", item, content_index=0, part=begun)]

    def _close(self, status: str) -> list[Event]:
        item, self._item = self._item, None
        if item is None:
            return []
        item["status"] = status
        (part,) = item["content"]
        more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        events = [
            self._of_item(f"response.{part['type']}.done", item, content_index=0, text=part["text"], **more),
            self._of_item("response.content_part.done", item, content_index=0, part=part),
        ]
        return [*events, self._done(item)]

    def _called(self, call: Call) -> list[Event]:
        events = self._close("completed")
        item = {"id": _name("function_call"), "type": "function_call", "status": "in_progress", "arguments": ""}
        item |= {"call_id": call_id(), "name": call.name}
        function = self._functions.get(call.name)
        if function is not None and function.space is not None:
            item |= {"name": function.told["name"], "namespace": function.space}
        index, arguments = len(self._output), call.arguments
        events += [
            self._event("response.output_item.added", output_index=index, item=item),
            self._of_item("response.function_call_arguments.delta", item, delta=arguments),
            self._of_item("response.function_call_arguments.done", item, name=item["name"], arguments=arguments),
        ]
        return [*events, self._done({**item, "status": "completed", "arguments": arguments})]

    def _done(self, item: dict[str, Any]) -> Event:
        event = self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        return event


def _name(kind: str) -> str:
    return f"{PREFIXES[kind]}_{secrets.token_hex(24)}"


def _last(told: list[Told], text: str) -> list[Told]:
    """Those at the end that a text is of: marks and spaces that stand before it are of nothing."""
    kept, left = len(told), len(text.encode())
    while kept and left > 0:
        kept -= 1
        chosen = told[kept].chosen
        left -= len(chosen.token.encode() if chosen.bytes is None else chosen.bytes)
    return told[kept:]


def _told(one: Told) -> dict[str, Any]:
    """Of which clients expect bytes, whether there are some or not."""
    top = [{**likely(other), "bytes": other.bytes or []} for other in one.top]
    return {**likely(one.chosen), "bytes": one.chosen.bytes or [], "top_logprobs": top}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.known_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
