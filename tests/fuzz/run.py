"""One damaged file after the other through a reader: each is taken, or refused in one line."""

import os
import signal
import traceback
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qlinear.errors import AwqError, is_out_of_memory
from tests.fuzz.readers import Reader

SECONDS = 60  # of the processor's time, for one input
WAITING = 900  # by the clock: the machine may be busy, and a file cold


class Hanging(BaseException):
    pass


@dataclass
class Tally:
    """counts: of what became of the inputs; faults: seed -> how it ended that was neither taken nor refused."""

    counts: Counter = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)


def outcome(reader: Reader, folder: Path) -> str:
    """ "taken", "refused" or "memory"; raises whatever else it is that a reader ends in, `Hanging` too."""
    try:
        with _bounded():
            reader.read(folder)
    except AwqError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, f"not one line: {error!r}"
        return "refused"
    except Exception as error:
        if is_out_of_memory(error):
            return "memory"
        raise
    return "taken"


def run(reader: Reader, folder: Path, seeds: Iterable[int]) -> Tally:
    """folder: for the reader alone; what lies there is removed."""
    good, tally = folder / "good", Tally()
    if not good.exists():
        reader.make(good)
        reader.read(_copy(reader, folder))  # undamaged, it is taken
    for seed in seeds:
        data = reader.damaged(folder / "damaged", good, seed)
        (folder / "last").write_bytes(data)  # what it died of, if it dies
        try:
            tally.counts[outcome(reader, folder / "damaged")] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            tally.counts["fault"] += 1
            tally.faults[seed] = traceback.format_exc()
    return tally


def _copy(reader: Reader, folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder / "damaged", ignore_errors=True)
    return shutil.copytree(folder / "good", folder / "damaged")


_TIMERS = {
    signal.SIGPROF: (signal.ITIMER_PROF, SECONDS, "of the processor's time"),
    signal.SIGALRM: (signal.ITIMER_REAL, WAITING, "by the clock"),
}


@contextmanager
def _bounded():
    def hanging(number, _):
        _, seconds, how = _TIMERS[number]
        raise Hanging(f"no end within {seconds} s {how}")

    before = {number: signal.signal(number, hanging) for number in _TIMERS}
    for timer, seconds, _ in _TIMERS.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _, _ in _TIMERS.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet() -> None:
    """Libraries say what they think of such files; that is not for the terminal."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.update(TRANSFORMERS_VERBOSITY="critical", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
