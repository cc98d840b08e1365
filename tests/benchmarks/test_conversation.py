"""What a terminal shows of a conversation that a program types."""

import sys

import pytest

from benchmarks.conversation import COLUMNS, Turn, session

# Says back what it is told, letter by letter and without an end, until ^C.
ECHO = """
import os, time
print(os.get_terminal_size().columns, os.environ["TERM"], flush=True)
while (line := input("> ")) != "/quit":
    try:
        while True:
            print(line[0], end="", flush=True)
            time.sleep(0.01)
            if line.endswith("."):
                break
    except KeyboardInterrupt:
        pass
    print()
"""


def test_what_is_typed_and_what_comes_of_it():
    shown = session([sys.executable, "-c", ECHO], [Turn("one."), Turn("two", interrupted=20), Turn("/quit")])
    head, first, *rest = shown.splitlines()
    assert head == f"{COLUMNS} dumb" and (first, rest[0]) == ("> one.", "o")
    assert rest[1] == "> two" and rest[2].replace("^C", "").strip("t") == "" and 20 < len(rest[2]) < 500
    assert rest[3:] == ["> /quit"]


def test_a_command_that_ends_or_never_asks(monkeypatch):
    assert session([sys.executable, "-c", "print('gone')"], []) == "gone\n"
    with pytest.raises(ChildProcessError, match="^error: none$"):
        session([sys.executable, "-c", "import sys; print('error: none'); sys.exit(2)"], [])
    monkeypatch.setattr("benchmarks.conversation.SECONDS", 0.5)
    with pytest.raises(TimeoutError, match="nothing more after"):
        session([sys.executable, "-c", "import time; time.sleep(60)"], [Turn("one")])
