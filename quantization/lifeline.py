"""One connection from each rank to the leading one, held open for as long as they work together, and watched.

The system closes it when a process ends, however it ends, and tells the other side; where a machine falls silent, TCP's
own probes find out. So no rank has to say that it is there, and one that is merely slow is not taken for dead. A rank
that fails says why before it goes; the leading rank tells the user, and lets the others go without a word.
"""

import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qlinear.errors import AwqError, RankError, UntoldError, one_line

# Seconds: for the connections to be made; before silence is asked about, between questions, and how many of them have
# no answer; for a process to end by itself once it has to.
MEET_S, SILENCE_S, ASK_S, QUESTIONS, GRACE_S = 300.0, 6, 3, 3, 12.0


def listen() -> tuple[socket.socket, int]:
    """Where the other ranks find the leading one."""
    server = socket.create_server(("", 0))
    server.settimeout(MEET_S)
    return server, server.getsockname()[1]


def connect(rank: int, size: int, port: int, token: str, server: socket.socket | None) -> "Lifeline":
    """Raises `OSError` where another rank does not come, or is not to be reached."""
    if server is None:
        link = socket.create_connection((os.environ["MASTER_ADDR"], port), MEET_S)
        link.sendall(f"{token} {rank}\n".encode())
        return Lifeline(rank, size, {0: _alive(link)})
    links: dict[int, socket.socket] = {}
    with server:
        while len(links) < size - 1:
            link, _ = server.accept()
            link.settimeout(MEET_S)
            given, _, number = _line(link).partition(" ")
            if secrets.compare_digest(given.encode(), token.encode()):  # whoever else may knock
                links[int(number)] = _alive(link)
    return Lifeline(rank, size, links)


def _line(link: socket.socket) -> str:
    """Up to the end of a line, or of a message."""
    found = b""
    while not found.endswith(b"\n") and len(found) < 4096 and (part := link.recv(4096)):
        found += part
    return found.decode(errors="replace").strip()


def _alive(link: socket.socket) -> socket.socket:
    """Ask a side that has fallen silent whether it is there."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENCE_S), ("TCP_KEEPINTVL", ASK_S), ("TCP_KEEPCNT", QUESTIONS)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


class _Ended(BaseException):
    """Another rank has, as told wherever this one happens to be: no `Exception`, which a library's caller would take
    for the library's own.
    """


class Lifeline:
    """links: to the leading rank, or from it to each other one."""

    def __init__(self, rank: int, size: int, links: dict[int, socket.socket]):
        self.rank, self.size, self._links = rank, size, links
        self._error: AwqError | None = None
        self._known, self._over = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the end of another rank is this one's too: a `RankError` wherever it happens to be."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGUSR1, self._raise) if main else None
        for rank in self._links:
            threading.Thread(target=self._watch, args=(rank, main), daemon=True).start()
        try:
            yield
        except (_Ended, RankError, UntoldError) as error:
            self._close("another rank has ended")
            raise (self._error if isinstance(error, _Ended) else error) from None
        except AwqError as error:
            self._close(str(error))
            raise error if self.rank == 0 else UntoldError(str(error)) from error
        except BaseException as error:
            self._close(f"{type(error).__name__}: {one_line(error)}")
            raise
        else:
            self._close(None)
        finally:
            if main:
                signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)

    def reason(self, error: Exception) -> AwqError:
        """Why an exchange failed: what is known of the rank that has ended, or will be soon."""
        self._known.wait(GRACE_S)
        return self._error or RankError(f"the ranks have lost each other: {one_line(error)}")

    def _close(self, fault: str | None) -> None:
        """Say goodbye, with the reason where there is one."""
        self._over.set()
        for link in self._links.values():
            with suppress(OSError):
                link.sendall(json.dumps({"fault": fault}).encode() + b"\n")
                link.shutdown(socket.SHUT_WR)

    def _watch(self, rank: int, main: bool) -> None:
        try:
            said = _line(self._links[rank])
        except OSError:
            said = ""
        fault = json.loads(said)["fault"] if said else ""
        if self._over.is_set() or fault is None:
            return
        with self._lock:
            if self._known.is_set():
                return
            self._error = self._told(rank, fault)
            self._known.set()
        if main:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        if not self._over.wait(GRACE_S):  # it waits where no signal is heard
            if not isinstance(self._error, UntoldError):
                print(f"error: {self._error}", file=sys.stderr, flush=True)
            self._close("another rank has ended")
            os._exit(2)

    def _told(self, rank: int, fault: str) -> AwqError:
        if rank == 0 and fault:
            return UntoldError(fault)
        why = f": {fault}" if fault else " without a word"
        return RankError(f"rank {rank} of {self.size} has ended{why}; all end with it")

    def _raise(self, *_) -> None:
        if self._error is not None and not self._over.is_set():
            raise _Ended
