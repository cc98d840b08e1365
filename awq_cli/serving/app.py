"""OpenAI's API over a batch: what each address answers."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from awq_cli.serving.answers import Chat, Completion, Shape
from awq_cli.serving.anthropic.asked import count_tokens, read_message
from awq_cli.serving.anthropic.told import Message, error_body
from awq_cli.serving.asks import Ask, Limits, read_chat, read_completion, read_object
from awq_cli.serving.counting import Meters
from awq_cli.serving.forms import Forms
from awq_cli.serving.refusals import GONE, Refusal, refusal_of
from awq_cli.serving.responses.asked import read_response
from awq_cli.serving.responses.kept import Kept
from awq_cli.serving.responses.told import Replied
from awq_cli.serving.writing import Writing, events, whole
from engine.batching import Batch
from engine.model import Model

# Bytes of a body: some, and for each token of the context more than tokens have on average, however they are escaped.
BODY_AT_LEAST, BODY_PER_TOKEN = 64 << 10, 64
BODY_SECONDS = 30.0  # that a client may take to send one

Endpoint = Callable[[Request], Awaitable[Response]]
Read = Callable[[dict[str, Any], Model, Forms, Limits], Ask]
T = TypeVar("T")
Make = Callable[[str, dict[str, Any]], Shape]  # of the model's name and a request


@dataclass(frozen=True)
class Served:
    """name: of the model, as clients see it; key: what they have to show, or None."""

    model: Model
    batch: Batch
    meters: Meters
    name: str
    key: str | None
    forms: Forms

    @property
    def limits(self) -> Limits:
        decoder = self.batch.decoder
        return Limits(decoder.max_tokens, decoder.slots + self.batch.most_waiting)

    @property
    def most_body(self) -> int:
        return BODY_AT_LEAST + BODY_PER_TOKEN * self.limits.context


def make_app(served: Served, origins: Sequence[str] = ()) -> Starlette:
    """origins: of pages that a browser lets ask."""
    api = _Api(served)
    routes = [
        Route("/v1/chat/completions", api.answered(api.chat), methods=["POST"]),
        Route("/v1/completions", api.answered(api.completion), methods=["POST"]),
        Route("/v1/responses", api.answered(api.response), methods=["POST"]),
        Route("/v1/responses/{name}", api.answered(api.kept), methods=["GET", "DELETE"]),
        Route("/v1/messages", api.answered(api.message), methods=["POST"]),
        Route("/v1/messages/count_tokens", api.answered(api.count_tokens), methods=["POST"]),
        Route("/v1/models", api.answered(api.models)),
        Route("/v1/models/{name:path}", api.answered(api.one_model)),
        Route("/health", api.answered(api.health)),
        Route("/metrics", api.answered(api.metrics)),
    ]
    shared = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return Starlette(
        routes=routes, exception_handlers={HTTPException: _refuse_http}, middleware=[shared] if origins else []
    )


class _Api:
    def __init__(self, served: Served):
        self._served = served
        self._started = int(time.time())
        self._kept = Kept()
        self._encoding = asyncio.Lock()  # templates and tokenizers take one text at a time

    def answered(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint that answers whatever happens in it, and is counted."""

        async def answer(request: Request) -> Response:
            try:
                self._check_key(request)
                response = await endpoint(request)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except Exception as error:  # whatever it is, a client is to get an answer, and no traceback
                response = _refusing(refusal_of(error), request.url.path)
            self._served.meters.requests.labels(request.scope["route"].path, response.status_code).inc()
            return response

        return answer

    def _check_key(self, request: Request) -> None:
        key = self._served.key
        if key is None or not request.url.path.startswith("/v1/"):
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        shown = [given if kind.lower() == "bearer" else "", request.headers.get("x-api-key", "")]  # Anthropic's clients
        if not any([hmac.compare_digest(one.strip().encode(), key.encode()) for one in shown]):
            raise Refusal(
                401, "Incorrect API key provided; give the one that the server was started with", code="invalid_api_key"
            )

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(self._served.meters.text(), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, Any]:
        return {"id": self._served.name, "object": "model", "created": self._started, "owned_by": "run_awq"}

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._card())

    def _check_name(self, name: Any) -> None:
        if name != self._served.name:
            raise Refusal(
                404, f"The model {name!r} does not exist; this is {self._served.name!r}", "model", "model_not_found"
            )

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, read_chat, lambda name, _: Chat(name))

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, read_completion, lambda name, _: Completion(name))

    async def response(self, request: Request) -> Response:
        return await self._answer(request, partial(read_response, self._kept), partial(Replied, self._kept))

    async def kept(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.query_params.get("stream", "false") != "false":
            raise Refusal(400, "stream: an answer that is kept comes at once", "stream", "unsupported_parameter")
        if request.method != "DELETE":
            return _Json(self._kept.find(name))
        self._kept.forget(name)
        return _Json({"id": name, "object": "response", "deleted": True})

    async def message(self, request: Request) -> Response:
        return await self._answer(request, read_message, Message)

    async def count_tokens(self, request: Request) -> Response:
        return _Json({"input_tokens": await self._read(await self._given(request), count_tokens)})

    async def _given(self, request: Request) -> dict[str, Any]:
        """What a request says, of the model that there is."""
        given = read_object(await _body(request, self._served.most_body))
        if given.get("model") is not None:
            self._check_name(given["model"])
        return given

    async def _read(self, given: dict[str, Any], read: Callable[..., T]) -> T:
        served = self._served
        async with self._encoding:
            return await asyncio.to_thread(read, given, served.model, served.forms, served.limits)

    async def _answer(self, request: Request, read: Read, make: Make) -> Response:
        served, begun = self._served, time.perf_counter()
        given = await self._given(request)
        ask = await self._read(given, read)
        shape = make(served.name, given)
        writing = Writing(ask, served.model, served.batch, served.meters, begun)
        if ask.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(events(writing, shape), media_type="text/event-stream", headers=headers)
        return _Json(await _unless_gone(request, whole(writing, shape)))


async def _unless_gone(request: Request, answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The answer, which is given up when the client goes."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    answering, going = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((answering, going), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, going):
            task.cancel()


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise Refusal(413, f"the body has more than {most} bytes", code="body_too_large")
    except TimeoutError as error:
        raise Refusal(
            408, f"the body took more than {BODY_SECONDS:.0f} seconds to come", code="body_too_slow"
        ) from error
    return bytes(body)


def _refusing(refusal: Refusal, path: str) -> Response:
    headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}, 413: {"connection": "close"}}
    return _Json(_told(refusal, path), refusal.status, headers=headers.get(refusal.status))


class _Json(JSONResponse):
    """Of what a request or a model says, too, which may be halves of characters."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


async def _refuse_http(request: Request, error: HTTPException) -> Response:
    """There is no such address, or not for this method."""
    path = f"{request.method} {request.url.path}"
    there = "; there are /v1/chat/completions, /v1/responses, /v1/messages, /v1/completions and /v1/models"
    known = there if error.status_code == 404 else ""
    refusal = Refusal(error.status_code, f"{path}: {error.detail}{known}", code="unknown_url")
    return JSONResponse(_told(refusal, request.url.path), error.status_code, error.headers)


def _told(refusal: Refusal, path: str) -> dict[str, Any]:
    """In the shape of the API that was asked."""
    return error_body(refusal) if path.startswith("/v1/messages") else refusal.body()
