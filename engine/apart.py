"""What may take for ever, or end its process: done in one of its own, with bounds of time and memory."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

MOST_MEMORY = 2**30  # beyond what this process has
ALONE = 5  # seconds more, after which the system ends what nobody has
OUT_OF_MEMORY = 9  # how the other process ends then: there may be no room to send anything

# What was made, and None; or None, and in words why not.
Outcome = tuple[Any, str | None]


def apart(work: Callable[..., Outcome], *given: Any, seconds: float) -> Outcome:
    """What `work(*given)` returns in a process of its own; in words too where that has no end, or a bad one."""
    context = _processes()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, seconds, work, given), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return None, f"takes more than {seconds} seconds"
        return receiver.recv()
    except EOFError:
        child.join()
        spent = f"takes more than {MOST_MEMORY / 2**30:g} GiB of memory"
        return None, spent if child.exitcode == OUT_OF_MEMORY else "ended the process that it ran in"
    finally:
        child.kill()
        child.join()
        with suppress(ValueError):  # that it runs still: where SIGCHLD is ignored nobody is told of its end
            child.close()
        receiver.close()


def _processes() -> Any:
    """Copies of this process, where there is such a thing: they have all that is given, and need not load anything."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if "fork" in methods else "spawn")


def _send(sender: Connection, seconds: float, work: Callable[..., Outcome], given: tuple) -> None:
    """In the other process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what is to be said is sent
    try:
        _bound(seconds)
        sender.send(work(*given))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _bound(seconds: float) -> None:
    """Of memory, where the system says how much is in use; of time too, should nobody be left to end it."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except (ImportError, OSError):
        return
    for what, bound in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + MOST_MEMORY),
        (resource.RLIMIT_CPU, int(seconds) + ALONE),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


class Helper:
    """`apart` for a process of many threads: a copy of one that may hold a lock then could wait for it for ever.

    So there is a helper, made while this process has no threads that matter; it has a thread alone, and makes the
    processes that the work is done in. It ends with `close`, or with this process, however that ends.
    """

    def __init__(self, work: Callable[[Any], Outcome], module: str | None = None):
        """work: what the helper does with what it is asked, by `apart`; module: for it to load at once."""
        self._work, self._module, self._lock = work, module, threading.Lock()
        self._start()

    def ask(self, asked: Any) -> Outcome:
        """From any thread, one at a time."""
        with self._lock:
            try:
                return self._sent(asked)
            except (EOFError, OSError):  # somebody ended it
                self.close()
                self._start()
                return self._sent(asked)

    def close(self) -> None:
        self._pipe.close()
        self._helper.kill()
        self._helper.join()
        with suppress(ValueError):
            self._helper.close()

    def _start(self) -> None:
        context = _processes()
        self._pipe, theirs = context.Pipe()
        self._helper = context.Process(target=_help, args=(theirs, self._pipe, self._work, self._module))
        self._helper.start()
        theirs.close()

    def _sent(self, asked: Any) -> Outcome:
        self._pipe.send(asked)
        return self._pipe.recv()


def _help(pipe: Connection, others: Connection, work: Callable[[Any], Outcome], module: str | None) -> None:
    """In the helper: answer until there is nobody to answer."""
    others.close()
    _close_sockets(pipe.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for whoever asks; that one tells by closing the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if module is not None:
        import_module(module)  # once, and not in each process that works

    try:
        while True:
            pipe.send(work(pipe.recv()))
    except (EOFError, OSError):
        os._exit(0)  # what the process that this is a copy of does when it ends is not this one's to do


def _close_sockets(kept: int) -> None:
    """Those that this is a copy of: who is at their other end would never be told that they were closed."""
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if int(name) > 2 and int(name) != kept and os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    os.close(int(name))
