"""Quantizing stopped at a moment drawn by a seed: killed, its files no longer growing, or out of memory.

Whatever stops it, it says so in one line, and the same again, with `--resume` where anything was kept, makes the same
bytes as a run that nobody disturbs.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.readers import _float_model

STOPS = ("kill", "disk", "memory")
ROOT = Path(__file__).parents[2]
# Nothing takes that long; what hangs is a fault.
LIMIT_S = 120


@dataclass(frozen=True)
class Stage:
    """A folder with a model, what quantizing it makes, and how many seconds that takes."""

    folder: Path
    expected: dict[str, bytes]
    seconds: float


def started(folder: Path, output: str, resume: bool, limit: tuple[str, int] = ("none", 0)) -> subprocess.Popen:
    """Start the command in a process of its own; limit: of what there is to be how much (see `_limit`)."""
    text = ["--calib_data", "m.txt", "--n_samples", "8", "--seqlen", "16", "--group_size", "32"]
    options = ["--task", "quantize", "--model_name", "m", "--output", output, *text, *["--resume"] * resume]
    environment = {
        **os.environ, "AWQ_CACHE": str(folder / f"cache-{output}"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.fuzz.stops", limit[0], str(limit[1]), *options]
    with open(folder / f"{output}.out", "wb") as out, open(folder / f"{output}.err", "wb") as error:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=error)


def _limit(kind: str, most: int) -> None:
    """disk: bytes a file may have; memory: bytes beyond what the libraries take."""
    if kind == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if kind == "memory":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + most, held + most))


def _command(kind: str, most: str, *options: str) -> None:
    """What the process of its own does: the command, every step kept, within a limit."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from awq_cli.main import main
    from checkpoints import journal

    journal.WORTH = 0
    sys.argv = ["run_awq.py", *options]
    _limit(kind, int(most))
    main()


def contents(directory: Path) -> dict[str, bytes]:
    """What a checkpoint holds, but for the recipe, which says how long it took."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "awq_recipe.json"}


def prepared(folder: Path) -> Stage:
    _float_model(folder, num_hidden_layers=4)
    began = time.monotonic()
    assert started(folder, "whole", False).wait() == 0, (folder / "whole.err").read_text()
    return Stage(folder, contents(folder / "whole"), time.monotonic() - began)


def _drawn(kind: str, rng: random.Random) -> tuple[str, int]:
    ranges = {"disk": (2.5, 5), "memory": (5, 8.3)}
    return (kind, int(10 ** rng.uniform(*ranges[kind]))) if kind in ranges else ("none", 0)


def stopped(stage: Stage, kind: str, seed: int) -> str:
    """Stop a run and make it whole; in a word, what became of it. Raises `AssertionError` for what must not be."""
    rng, output = random.Random(f"{kind} {seed}"), f"{kind}-{seed}"
    process = started(stage.folder, output, False, _drawn(kind, rng))
    if kind == "kill":
        time.sleep(rng.uniform(0, stage.seconds))
        process.kill()
    code = process.wait(LIMIT_S)
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
        code = started(stage.folder, output, kept).wait(LIMIT_S)
        assert code == 0, (stage.folder / f"{output}.err").read_text()
    assert contents(made) == stage.expected, "another checkpoint"
    assert not (stage.folder / f".{output}.partial").exists() or kind == "kill"
    return "gone on with" if kept else "begun again"


def stop_often(folder: Path, kind: str, seeds: range, stage: Stage | None = None) -> Counter:
    stage = stage or prepared(folder)
    return Counter(stopped(stage, kind, seed) for seed in seeds)


if __name__ == "__main__":
    _command(*sys.argv[1:])
