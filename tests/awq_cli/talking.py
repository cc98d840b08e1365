"""The command on a pseudo-terminal, typed at and read from as a user would."""

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
from pathlib import Path
from select import select

SCRIPT = Path(__file__).parents[2] / "run_awq.py"
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_=>])")
# A model that takes its time: a tiny one has written everything before anybody can press a key.
SLOWLY = """
import os, sys, time
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from awq_cli.main import main
import engine.conversation as conversation
quick = conversation.generate
def slowly(*arguments, **options):
    wait = {first}
    for token in quick(*arguments, **options):
        time.sleep(wait)
        yield token
        wait = 0.05
conversation.generate = slowly
main()
"""


class Talking:
    """A terminal of some columns with `--task chat` on it. text: all that was shown, without what moves the cursor.

    slowly: seconds to the first token of an answer; those after it take 0.05 each.
    """

    def __init__(self, folder: Path, *arguments, columns: int = 80, slowly: float | None = None):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("COLUMNS", None)
        how = [] if slowly is None else ["-c", SLOWLY.replace("{first}", str(slowly))]
        self.process = subprocess.Popen(
            [sys.executable, *how, SCRIPT, "--task", "chat", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_heeds_interrupts,
        )
        self.settings = termios.tcgetattr(theirs)
        self._theirs = theirs  # kept open, to see in what state the terminal is left
        self._raw, self._seen = b"", 0

    def __enter__(self) -> "Talking":
        self.expect("/help lists commands", seconds=240)  # a start says nothing of chat, and others may have the cores
        self.expect("\n>")
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self._raw.decode("utf-8", errors="replace")).replace("\r\n", "\n").replace("\r", "")

    def expect(self, wanted: str, seconds: float = 60) -> str:
        """Wait until something is shown that was not expected before; what is shown up to there."""
        until = time.monotonic() + seconds
        while (found := self.text.find(wanted, self._seen)) < 0:
            assert time.monotonic() < until, f"no {wanted!r} after {self.text[self._seen :]!r}"
            if select([self._ours], [], [], 0.05)[0]:
                self._raw += os.read(self._ours, 65536)
            assert self.process.poll() is None or select([self._ours], [], [], 0)[0], self.text[self._seen :]
        before, self._seen = self.text[self._seen : found], found + len(wanted)
        return before

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode("utf-8"))

    def say(self, line: str) -> str:
        """A turn, and what comes of it up to the next prompt."""
        self.type(f"{line}\r")
        self.expect("\n")
        return self.expect("\n>")

    def ended(self) -> int:
        """The exit status, once the rest is read."""
        until = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < until:
            if select([self._ours], [], [], 0.05)[0]:
                self._raw += os.read(self._ours, 65536)
        while select([self._ours], [], [], 0.05)[0]:
            self._raw += os.read(self._ours, 65536)
        assert termios.tcgetattr(self._theirs) == self.settings  # as it was found
        return self.process.wait(timeout=1)


def _heeds_interrupts() -> None:
    """In the child: the terminal is its own, and ^C is not ignored as in a job in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
