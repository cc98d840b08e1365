"""Quantizing stopped at a moment drawn by a seed: killed, its files no longer growing, or out of memory.

Whatever stops it, it says so in one line, and the same again, with `--resume` where anything was kept, makes the same
bytes as a run that nobody disturbs.
"""

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.readers import _float_model

STOPS = ("kill", "disk", "memory")


@dataclass(frozen=True)
class Stage:
    """A folder with a model, what quantizing it makes, and how many seconds that takes."""

    folder: Path
    expected: dict[str, bytes]
    seconds: float


def forked(folder: Path, output: str, resume: bool, before: Callable[[], None]) -> int:
    """Start the command in a fork of this process, in which the libraries are loaded already; its process id.

    before: called in the fork first.
    """
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.chdir(folder)
        os.environ["AWQ_CACHE"] = str(folder / f"cache-{output}")
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        from awq_cli.main import main
        from checkpoints import journal

        journal.WORTH = 0  # every step is kept
        text = ["--calib_data", "m.txt", "--n_samples", "8", "--seqlen", "16", "--group_size", "32"]
        options = ["--task", "quantize", "--model_name", "m", "--output", output, *text, *["--resume"] * resume]
        sys.argv = ["run_awq.py", *options]
        before()
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(directory: Path) -> dict[str, bytes]:
    """What a checkpoint holds, but for the recipe, which says how long it took."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "awq_recipe.json"}


def prepared(folder: Path) -> Stage:
    _float_model(folder, num_hidden_layers=4)
    seconds = []
    for output in ("first", "whole", "again"):
        began = time.monotonic()
        assert ended(forked(folder, output, False, lambda: None)) == 0, (folder / f"{output}.err").read_text()
        seconds.append(time.monotonic() - began)
    return Stage(folder, contents(folder / "whole"), min(seconds))


def _limited(kind: str, rng: random.Random) -> Callable[[], None]:
    if kind == "disk":
        most = int(10 ** rng.uniform(2.5, 5))
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if kind == "memory":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = held + int(10 ** rng.uniform(5, 8.3))
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return lambda: None


def stopped(stage: Stage, kind: str, seed: int) -> str:
    """Stop a run and make it whole; in a word, what became of it. Raises `AssertionError` for what must not be."""
    rng, output = random.Random(f"{kind} {seed}"), f"{kind}-{seed}"
    process = forked(stage.folder, output, False, _limited(kind, rng))
    if kind == "kill":
        time.sleep(rng.uniform(0, stage.seconds))
        os.kill(process, signal.SIGKILL)
    code = ended(process)
    lines = (stage.folder / f"{output}.err").read_text(errors="replace").splitlines()
    made = stage.folder / output
    if code == 0:
        assert contents(made) == stage.expected, "another checkpoint"
        return "was done"
    assert code == (-signal.SIGKILL if kind == "kill" else 2), (code, lines[-20:])
    assert kind == "kill" or (lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines)), lines
    assert kind == "kill" or all(line.startswith("note: ") for line in lines[:-1]), lines
    kept = (stage.folder / f".{output}.partial" / "journal.json").exists()
    if not made.exists():
        code = ended(forked(stage.folder, output, kept, lambda: None))
        assert code == 0, (stage.folder / f"{output}.err").read_text()
    assert contents(made) == stage.expected, "another checkpoint"
    assert not (stage.folder / f".{output}.partial").exists() or kind == "kill"
    return "gone on with" if kept else "begun again"


def stop_often(folder: Path, kind: str, seeds: range, stage: Stage | None = None) -> Counter:
    stage = stage or prepared(folder)
    return Counter(stopped(stage, kind, seed) for seed in seeds)
