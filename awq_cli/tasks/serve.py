"""Answer over HTTP, by OpenAI's and Anthropic's APIs, several conversations at once."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_cli.running import ModelRequest, ModelResult, described, open_model
from engine.batching import Batch
from engine.drafting import Drafted
from qlinear.errors import OptionError, TargetError, one_line
from qlinear.progress import Note, Watcher

MOST_CONTEXT = 8192  # where nothing is said, as in a conversation
WAITING = 16  # requests that may wait, for each slot
HEAD_SECONDS = 30.0  # that a request has to begin in, before its connection is closed
KEEP_ALIVE = 30  # seconds after an answer; clients keep connections for 5, and both ending at once would lose a request
GRACE = 5.0  # seconds that answers have to end in, once the server is asked to
API_KEY = "RUN_AWQ_API_KEY"
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")  # as browsers write it


@dataclass(frozen=True)
class Request(ModelRequest):
    host: str
    port: int
    api_key: str | None
    allow_origin: tuple[str, ...]
    slots: int
    context: int | None
    draft: str | None


@dataclass(frozen=True)
class Result(ModelResult):
    """address: where it was; written: tokens; ended: answers by how they did; failed: those that an error ended;
    draft: of steps with one answer alone, None where nothing proposed tokens.
    """

    address: str
    slots: int
    context: int
    written: int
    ended: dict[str, int]
    failed: int
    draft: Drafted | None


@dataclass(frozen=True)
class Serving:
    """Told of once requests are answered."""

    address: str
    model: str
    backend: str
    slots: int
    context: int


def run(request: Request, watch: Watcher) -> Result:
    _check_libraries()
    key = request.api_key if request.api_key is not None else os.environ.get(API_KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
        raise OptionError("`api_key` has to be some printable characters of ASCII")
    key = key and key.strip()  # as whoever sends it does
    for origin in request.allow_origin:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise OptionError(f"`allow_origin={origin}` is no origin of pages; give one as http://localhost:3000, or *")
    listening = _listen(request.host, request.port)
    with listening:
        model = open_model(request, watch, request.draft)
        context = _context(request, model)
        from awq_cli.serving.forms import Forms

        with model.rendering_apart(), closing(Forms(model)) as forms:
            decoder = model.slots(context, request.slots)
            batch = Batch(decoder, WAITING * request.slots, model.draft(decoder))
            try:
                return _serve(request, watch, _Opened(model, batch, listening, key, forms))
            finally:
                batch.close()


@dataclass(frozen=True)
class _Opened:
    model: Any
    batch: Batch
    listening: socket.socket
    key: str | None
    forms: Any

    @property
    def name(self) -> str:
        """Of the model, as clients see it: its checkpoint's folder, or its own."""
        return Path(os.path.abspath(self.model.about.checkpoint or self.model.about.name)).name


def _serve(request: Request, watch: Watcher, opened: _Opened) -> Result:
    from awq_cli.serving.app import Served, make_app
    from awq_cli.serving.counting import Meters

    model, batch = opened.model, opened.batch
    notes = model.rules.notes
    app = make_app(Served(model, batch, Meters(batch), opened.name, opened.key, opened.forms), request.allow_origin)
    context, slots = batch.decoder.max_tokens, batch.decoder.slots
    if opened.key is None and not _is_of_this_machine(request.host):
        watch(Note(f"`host={request.host}`: whoever reaches this machine may ask; `api_key` shuts them out"))
    address = _address(opened.listening)  # which is closed in the end
    serving = Serving(address, opened.name, model.about.code, slots, context)
    _run_until_told(app, opened, lambda: watch(serving))
    counts = batch.counts
    return Result(
        **described("serve", request, model, notes),
        address=address,
        slots=slots,
        context=context,
        written=counts.written,
        ended={how.value: count for how, count in counts.ended.items()},
        failed=counts.failed,
        draft=batch.draft and counts.drafted,
    )


def _run_until_told(app: Any, opened: _Opened, begun: Callable[[], None]) -> None:
    """Until SIGINT or SIGTERM: answers may then end within `GRACE`; another one ends it at once.

    begun: called once requests are answered, and signals heeded.
    """
    import asyncio  # late, as uvicorn: other tasks would wait for it

    import uvicorn

    from awq_cli.serving.patience import patient_protocol

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.told)
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            begun()

        def told(self) -> None:
            if self.should_exit:
                self.force_exit = True
            self.should_exit = True
            grace = 0.0 if self.force_exit else GRACE
            threading.Thread(target=opened.batch.close, args=(grace,), daemon=True).start()

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it warns of clients that are not there any more
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=patient_protocol(HEAD_SECONDS),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE) + 2,
        timeout_keep_alive=KEEP_ALIVE,
    )
    Server(config).run(sockets=[opened.listening])


def _context(request: Request, model: Any) -> int:
    if request.context is None:
        return min(MOST_CONTEXT, model.max_positions or MOST_CONTEXT)
    model.check_fits(request.context, "conversations of `context`")
    return request.context


def _check_libraries() -> None:
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise TargetError(
            f"`task=serve` needs {error.name}; install what it needs: pip install 'run-awq[serve]'"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    """Raises `OptionError` where somebody else listens, or there is no such address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OptionError(f"`host={host}` is no address of this machine: {error.strerror}") from error
    except UnicodeError as error:  # of a name that the network has no form for
        raise OptionError(f"`host={host}` is no address of this machine: {one_line(error)}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise OptionError(f"`port={port}` of {host} cannot be had: {error.strerror}; give another `port`") from error
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_of_this_machine(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
