"""What is taken for a reader that never ends."""

import signal
import time

import pytest

from tests.fuzz import run
from tests.fuzz.run import Hanging, outcome


class Endless:
    def __init__(self, wait):
        self.wait = wait

    def read(self, folder):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            self.wait()


@pytest.mark.parametrize(
    ("number", "timer", "wait", "how"),
    [
        (signal.SIGPROF, signal.ITIMER_PROF, lambda: None, "of the processor's time"),
        (signal.SIGALRM, signal.ITIMER_REAL, lambda: time.sleep(0.01), "by the clock"),
    ],
)
def test_a_reader_that_does_not_end_is_told_by_either_time(monkeypatch, tmp_path, number, timer, wait, how):
    monkeypatch.setitem(run._TIMERS, number, (timer, 0.1, how))
    with pytest.raises(Hanging, match=f"no end within 0.1 s {how}"):
        outcome(Endless(wait), tmp_path)
    assert signal.getitimer(timer) == (0, 0)


def test_time_that_others_take_is_not_the_readers(monkeypatch, tmp_path):
    class Waiting:
        def read(self, folder):
            time.sleep(0.5)

    monkeypatch.setitem(run._TIMERS, signal.SIGPROF, (signal.ITIMER_PROF, 0.2, "of the processor's time"))
    assert outcome(Waiting(), tmp_path) == "taken"
