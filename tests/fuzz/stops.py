"""Quantizing stopped at a moment drawn by a seed: killed, its files no longer growing, its disk full, or out of memory.

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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.readers import _float_model

STOPS = ("kill", "late kill", "disk full", "file size", "memory")
KILLS = STOPS[:2]  # at any moment; at any after a first block is kept
ROOT = Path(__file__).parents[2]
# Nothing takes that long; what hangs is a fault.
LIMIT_S = 900  # by the clock: the machine may be busy
BEGINS = "libraries are loaded"


@dataclass(frozen=True)
class Stage:
    """A folder with a model, what quantizing it makes, and how many seconds that takes once libraries are loaded."""

    folder: Path
    expected: dict[str, bytes]
    seconds: float


def started(folder: Path, place: str, resume: bool, limit: tuple[str, int] = ("none", 0)) -> subprocess.Popen:
    """Start the command in a process of its own, which makes `q` in `folder / place`.

    limit: of what there is to be how much (see `_limit` and `_on_a_small_disk`).
    """
    text = ["--calib_data", "m.txt", "--n_samples", "8", "--seqlen", "16", "--group_size", "32"]
    options = ["--task", "quantize", "--model_name", "m", "--output", f"{place}/q", *text, *["--resume"] * resume]
    environment = {
        **os.environ, "AWQ_CACHE": str(folder / place / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.fuzz.stops", limit[0], str(limit[1]), *options]
    if limit[0] == "disk full":
        command = _on_a_small_disk(limit[1], place, command)
    (folder / place).mkdir(exist_ok=True)
    with open(folder / f"{place}.out", "wb") as out, open(folder / f"{place}.err", "wb") as error:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=error)


def _on_a_small_disk(size: int, place: str, command: list[str]) -> list[str]:
    """A command with a file system of `size` bytes at `place`, of which only it knows, and whose files stay there."""
    script = """
        mount -t tmpfs -o "size=$1" none "$2" && mkdir "$2/cache" || exit 99
        there=$2; shift 2; "$@"; code=$?
        cp -a "$there" "$there.kept" && umount "$there" && cp -a "$there.kept/." "$there" || exit 99
        rm -r "$there.kept"
        exit $code
    """
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(size), place, *command]


def mounts() -> bool:
    """Whether a file system may be mounted for one process."""
    asked = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(asked, capture_output=True).returncode == 0


def _limit(kind: str, most: int) -> None:
    """file size: bytes a file may have; memory: bytes beyond what the libraries take."""
    if kind == "file size":
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
    print(BEGINS, flush=True)
    main()


def _wait_for_the_beginning(folder: Path, place: str, process: subprocess.Popen) -> None:
    """Until libraries are loaded, or it ended."""
    _wait_for(lambda: BEGINS in (folder / f"{place}.out").read_text(errors="replace"), process)


def _wait_for(holds: Callable[[], bool], process: subprocess.Popen) -> None:
    while not holds() and process.poll() is None:
        time.sleep(0.01)


def contents(directory: Path) -> dict[str, bytes]:
    """What a checkpoint holds, but for the recipe, which says how long it took."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "awq_recipe.json"}


def prepared(folder: Path) -> Stage:
    _float_model(folder, num_hidden_layers=4)
    process = started(folder, "whole", False)
    _wait_for_the_beginning(folder, "whole", process)
    began = time.monotonic()
    assert process.wait() == 0, (folder / "whole.err").read_text()
    return Stage(folder, contents(folder / "whole" / "q"), time.monotonic() - began)


def _drawn(kind: str, rng: random.Random, size: int) -> tuple[str, int]:
    """size: of what is made, in bytes."""
    if kind == "disk full":
        return kind, max(4096, int(size * rng.uniform(0.2, 2.5)))
    ranges = {"file size": (2.5, 5), "memory": (5, 8.3)}
    return (kind, int(10 ** rng.uniform(*ranges[kind]))) if kind in ranges else ("none", 0)


def stopped(stage: Stage, kind: str, seed: int) -> str:
    """Stop a run and make it whole; in a word, what became of it. Raises `AssertionError` for what must not be."""
    rng, place = random.Random(f"{kind} {seed}"), f"{kind} {seed}"
    process = started(stage.folder, place, False, _drawn(kind, rng, sum(map(len, stage.expected.values()))))
    if kind in KILLS:
        _wait_for_the_beginning(stage.folder, place, process)
        if kind == "late kill":
            _wait_for((stage.folder / place / ".q.partial" / "journal.json").exists, process)
        with suppress(subprocess.TimeoutExpired):  # it was a busy moment that took so long
            process.wait(rng.uniform(0, stage.seconds))
        process.kill()
    code = process.wait(LIMIT_S)
    lines = (stage.folder / f"{place}.err").read_text(errors="replace").splitlines()
    made = stage.folder / place / "q"
    if code == 0:
        assert contents(made) == stage.expected, "another checkpoint"
        return "was done"
    assert code == (-signal.SIGKILL if kind in KILLS else 2), (code, lines[-20:])
    assert kind in KILLS or (lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines)), lines
    assert kind in KILLS or all(line.startswith("note: ") for line in lines[:-1]), lines
    kept = (made.with_name(".q.partial") / "journal.json").exists()
    complete = made.exists()
    if not complete:
        code = started(stage.folder, place, kept).wait(LIMIT_S)
        assert code == 0, (stage.folder / f"{place}.err").read_text()
    assert contents(made) == stage.expected, "another checkpoint"
    assert not (made.with_name(".q.partial")).exists() or kind in KILLS
    return "was done" if complete else "gone on with" if kept else "begun again"


if __name__ == "__main__":
    _command(*sys.argv[1:])
