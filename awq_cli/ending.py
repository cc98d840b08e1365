"""How the program ends: with one line, whatever ended it, and the exit status that other tools would give."""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from awq_cli.spelling import as_options, printable
from qlinear.errors import AwqError, OptionError, UntoldError, is_out_of_memory
from qlinear.process import rank_and_size

USER, FAULT = 2, 1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Terminated(SystemExit):
    """A signal asked the program to end; like an interrupt, it passes through whatever tidies up on its way.

    A loop of asyncio swallows what is raised in one of its callbacks, but for an interrupt and an exit.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what ends the work inside into its line on standard error and its exit status."""
    try:
        with _heeded_signals():
            yield
    except click.exceptions.Abort:
        _end("interrupted", 128 + signal.SIGINT)
    except Terminated as end:
        _end("terminated", 128 + end.number)
    except click.ClickException as error:
        _end(f"error: {error.format_message()}", USER)
    except UntoldError:
        sys.exit(USER)
    except AwqError as error:
        _end(f"error: {as_options(str(error))}", USER)
    except BrokenPipeError:  # who read the output has gone, `head` say: there is nobody to tell
        _to_nowhere(sys.stdout)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if getattr(error, "errno", None) in NO_ROOM:
            _end(f"error: cannot write: {os.strerror(error.errno)}; make room, or write elsewhere", USER)
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:  # whoever gave it, this program makes none so long
            _end(f"error: {str(error.filename)[:60]}...: {os.strerror(error.errno)}", USER)
        if is_out_of_memory(error):
            _end(f"error: there is not enough memory ({_named(error)}); give more of it, or ask for less", USER)
        _end(f"error: a fault of this program: {_named(error)}; {_recorded()}", FAULT)


@contextmanager
def once() -> Iterator[None]:
    """What is wrong with the command line, or ends all ranks at once, is for the leading one to say."""
    try:
        yield
    except (click.ClickException, click.exceptions.Abort, OptionError, Terminated) as error:
        if _follows():
            raise UntoldError(str(error)) from error
        raise


def _follows() -> bool:
    try:
        return rank_and_size()[0] > 0
    except OptionError:
        return False


@contextmanager
def _heeded_signals() -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on ^C: what is half done is tidied up, and what is left of it told."""

    def end(number: int, _) -> None:
        raise Terminated(number)

    # `nohup` has them ignored, and ignored they stay
    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def _end(message: str, status: int) -> None:
    """One line, whatever is in it: click lists choices on lines of their own, a file's name may hold anything."""
    try:
        sys.stdout.flush()
    except OSError:  # it is what there is no room for
        _to_nowhere(sys.stdout)
    try:
        click.echo(printable(" ".join(line.strip() for line in message.splitlines())), err=True)
    except BrokenPipeError:
        _to_nowhere(sys.stderr)
    sys.exit(status)


def _to_nowhere(stream) -> None:
    """So that what is flushed as Python ends does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _named(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _recorded() -> str:
    """Keep the traceback in a file; in words, where."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="run_awq-", suffix=".txt", delete=False) as file:
            file.write(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    except OSError:
        return "its traceback could not be written"
    return f"its traceback is in {file.name}"
