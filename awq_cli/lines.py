"""What the user says, a turn at a time: typed at a terminal, or line by line from a file or a pipe."""

import re
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from awq_cli.spelling import as_options
from engine.text import check_unicode
from qlinear.errors import AwqError, OptionError

PROMPT, MORE = "> ", "  "
ENDING = (signal.SIGTERM, signal.SIGHUP)


class Stop:
    """asked: whether the answer is to end; reading: it has not begun, and an interrupt may end that, wherever it is."""

    asked = reading = False


class Lines(Protocol):
    """Used in a `with`."""

    def read(self) -> str | None:
        """The next turn; None where the user leaves, or has nothing more to say."""

    def refused(self, error: AwqError) -> None:
        """What comes of a turn that cannot be."""

    def answering(self) -> Any:
        """A context for the time in which an answer is written: a `Stop`, which ^C may set."""


def open_lines(tell: Callable[[str], None]) -> Lines:
    """tell: shows a line to the user."""
    if sys.stdin is not None and sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty()):
        return _Typed(tell)
    return _Piped()


class _Piped:
    def __enter__(self) -> "_Piped":
        return self

    def __exit__(self, *_) -> None: ...

    def read(self) -> str | None:
        """Empty lines are none."""
        try:
            for line in sys.stdin or ():  # which may be closed
                check_unicode(line, "the standard input")
                if line.strip():
                    return line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise OptionError(
                f"the standard input is not UTF-8 text: {error.reason} at byte {error.start} of a part of it"
            ) from error
        return None

    def refused(self, error: AwqError) -> None:
        """Nobody is there to say it otherwise."""
        raise error

    @contextmanager
    def answering(self) -> Iterator[Stop]:
        """^C ends the program, as everywhere."""
        yield Stop()


class _Typed:
    """With line editing, and the turns before at the arrow keys."""

    def __init__(self, tell: Callable[[str], None]):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output

        self._tell, self._stop = tell, Stop()
        self._session = PromptSession(
            multiline=True,
            prompt_continuation=MORE,
            key_bindings=_keys(),
            output=None if sys.stdout.isatty() else create_output(always_prefer_tty=True),  # answers may go to a file
        )

    def __enter__(self) -> "_Typed":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        self._settings = termios.tcgetattr(sys.stdin)
        return self

    def __exit__(self, *_) -> None:
        """However it ends: a signal may come while the library is about to change the terminal's settings."""
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._settings)
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_) -> None:
        """Of an answer; at the prompt ^C is a key. Whoever swallows what is raised here sees the answer end still."""
        self._stop.asked = True
        if self._stop.reading:
            raise KeyboardInterrupt

    def read(self) -> str | None:
        """^C drops what is typed so far, and leaves where there is nothing, at the second time."""
        leaving = False
        while True:
            try:
                with self._signals_as_keys() as begun:
                    typed = self._session.prompt(PROMPT, pre_run=begun)
            except EOFError:
                return None
            except KeyboardInterrupt:
                nothing = not self._session.default_buffer.text
                if nothing and leaving:
                    return None
                if nothing:
                    self._tell("^C again leaves, as ^D does")
                leaving = nothing
                continue
            if typed.strip():
                return re.sub(r"\r\n?", "\n", typed)
            leaving = False

    @contextmanager
    def _signals_as_keys(self) -> Iterator[Callable[[], None]]:
        """Let a signal end the prompt as a key does, and have its say then; yields what to call once it has begun.

        What is raised wherever the loop of the prompt is would leave tasks of it pending, which complain.
        """
        app, came = self._session.app, []
        heeded = {number: signal.getsignal(number) for number in ENDING if callable(signal.getsignal(number))}

        def leave() -> None:
            if came and app.is_running and not app.is_done:
                app.exit(exception=EOFError)

        def note(number: int, _) -> None:
            came.append(number)
            if app.loop is not None:
                app.loop.call_soon_threadsafe(leave)

        for number in heeded:
            signal.signal(number, note)
        try:
            yield leave
        finally:
            for number, handler in heeded.items():
                signal.signal(number, handler)
            if came:
                heeded[came[0]](came[0], None)

    def refused(self, error: AwqError) -> None:
        self._tell(as_options(str(error)))

    @contextmanager
    def answering(self) -> Iterator[Stop]:
        """^C ends the answer: between two tokens, or at once while the prompt is still being read."""
        self._stop = Stop()
        with suppress(KeyboardInterrupt):
            yield self._stop
        self._stop.reading = False


def _keys() -> Any:
    """Enter sends; Alt+Enter begins a new line, as whatever is pasted does."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter", filter=has_focus(DEFAULT_BUFFER))(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))(lambda event: event.current_buffer.insert_text("\n"))
    return keys
