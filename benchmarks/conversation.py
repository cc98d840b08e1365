"""A conversation on a pseudo-terminal, typed by a program, for docs/chat.md: `python -m benchmarks.conversation`.

Needs the checkpoint that `--task quantize --w_bit 4` makes. The terminal is a dumb one, on which nothing moves about,
so that what it shows is text.
"""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from select import select

import click

from benchmarks.docs import DOCS, between, keep
from benchmarks.machine import processor

COLUMNS, SECONDS = 76, 120
RUN = "run_awq.py --task chat --w_bit 4 --temperature 0.6 --top_p 0.9 --max_new_tokens 90".split()
BEGIN, END = "<!-- python -m benchmarks.conversation -->", "<!-- end -->"


@dataclass(frozen=True)
class Turn:
    """What is typed at the prompt; interrupted: ^C after so many characters of the answer, None for none."""

    typed: str
    interrupted: int | None = None


TURNS = (
    Turn("What is a poem?"),
    Turn("Give me the title of one."),
    Turn("Tell me the whole history of poetry.", interrupted=150),
    Turn("/stats"),
    Turn("/save /tmp/poetry.json"),
    Turn("/quit"),
)


def session(command: Sequence[str], turns: Sequence[Turn], folder: str | None = None) -> str:
    """What a terminal shows of a command that asks with `> `, from its first character to its end.

    Raises `TimeoutError` for a command that does not ask, `ChildProcessError` for one that fails.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "dumb"}
    environment.pop("COLUMNS", None)
    streams = dict(stdin=theirs, stdout=theirs, stderr=theirs)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True, preexec_fn=_takes_terminal, **streams
    )
    os.close(theirs)
    shown = _Shown(ours)
    try:
        asked = 0
        for turn in turns:
            shown.wait(lambda text, asked=asked: text.endswith("\n> ") and len(text) > asked)
            asked = len(shown.text)
            time.sleep(0.5)  # until what is typed is no longer shown by the terminal itself
            os.write(ours, f"{turn.typed}\r".encode())
            if turn.interrupted is not None:
                enough = asked + len(turn.typed) + turn.interrupted
                shown.wait(lambda text, enough=enough: len(text) > enough)
                os.write(ours, b"\x03")
        shown.wait(lambda text: False)
        if process.wait() != 0:
            raise ChildProcessError(shown.text.strip()[-300:])
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown.text


class _Shown:
    def __init__(self, descriptor: int):
        self._descriptor, self._raw = descriptor, b""

    @property
    def text(self) -> str:
        text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", self._raw.decode("utf-8", errors="replace"))
        return text.replace("\r\n", "\n").replace("\r", "")

    def wait(self, enough) -> None:
        """Read until it is enough, or the other end is closed."""
        until = time.monotonic() + SECONDS
        while not enough(self.text):
            if time.monotonic() > until:
                raise TimeoutError(f"nothing more after {self.text[-200:]!r}")
            if not select([self._descriptor], [], [], 0.1)[0]:
                continue
            try:
                self._raw += os.read(self._descriptor, 65536)
            except OSError:  # closed
                return


def _takes_terminal() -> None:
    """In the child: ^C on the terminal is for it, and not ignored as in a job in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@click.command(help=__doc__)
def main() -> None:
    try:
        shown = session([sys.executable, *RUN], TURNS)
    except ChildProcessError as failed:
        sys.exit(f"the conversation failed, and the page is left as it is: {failed}")
    machine = f"{os.cpu_count()} cores ({processor()}), load average {os.getloadavg()[0]:.0f}."
    made = f"```\n$ python {' '.join(RUN)}\n{shown.rstrip()}\n```\n\n{machine}"
    page = DOCS / "chat.md"
    keep(page, between(page.read_text(encoding="utf-8"), BEGIN, END, made), "python -m benchmarks.conversation")


if __name__ == "__main__":
    main()
