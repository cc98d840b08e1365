"""A run that is stopped and resumed makes what it would have made."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import writer
from qlinear.errors import ModelError
from quantization import learned
from tests.awq_cli.conftest import CALIBRATION
from tests.awq_cli.resume.stopping import N_BLOCKS, left, quantize

ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes | dict]:
    """All files of a checkpoint; of its recipe and card what does not depend on the clock and where it lies."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for before in (b"\n# ", b'"', b"serve "):  # which the name stands behind
        found["README.md"] = found["README.md"].replace(before + folder.name.encode(), before + b"NAME")
    recipe = json.loads(found["awq_recipe.json"])
    for changing in ("seconds", "peak_rss_bytes", "checkpoint", "scales"):
        recipe.pop(changing)
    recipe["options"].pop("scales")
    return found | {"awq_recipe.json": recipe}


WHOLE, SHARDS = 2**30, 60_000
KINDS = [
    (WHOLE, ("--awq", "run", "--solver", "rtn")),
    (SHARDS, ("--awq", "run", "--w_bit", "3", "--lm_head", "--flash_attention")),
    (WHOLE, ("--awq", "run", "--solver", "hqq", "--lm_head")),
    (SHARDS, ("--awq", "run", "--solver", "gptq", "--lm_head")),
    (WHOLE, ("--awq", "none", "--solver", "gptq")),
    (WHOLE, ("--awq", "none", "--solver", "learned")),
    (SHARDS, ("--awq", "none", "--lm_head")),
    (SHARDS, ("--awq", "run", "--symmetric", "--lm_head")),
    (SHARDS, ("--awq", "run", "--bits_per_weight", "3.9", "--lm_head")),
]


def reads_text(kind: tuple) -> bool:
    return "run" in kind or "gptq" in kind or "learned" in kind


@pytest.mark.parametrize("case", KINDS, ids=[" ".join(kind) for _, kind in KINDS])
def test_a_resumed_run_makes_the_same_bytes(run, deep, text_file, stop, monkeypatch, case):
    """Stopped by an error in the second block, by an interrupt in the third, and after the last."""
    shard_bytes, kind = case
    monkeypatch.setattr(writer, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(learned, "STEPS", 6)  # however many there are, and however good what comes of them
    monkeypatch.setattr(learned, "CHECK_STEPS", 3)
    options = (*kind, *(("--calib_data", text_file, *CALIBRATION) if reads_text(kind) else ()))
    scales = ("--scales", "whole-scales/found.pt") if "run" in kind else ()
    whole = run.result(*quantize(deep, "whole", *options, *scales))

    scales = ("--scales", "resumed-scales/found.pt") if "run" in kind else ()
    command = quantize(deep, "resumed", *options, *scales)
    for index, error in ((1, ModelError("out of luck")), (2, KeyboardInterrupt()), (N_BLOCKS, KeyboardInterrupt())):
        stop(index, error)
        outcome = run(*command, *["--resume"] * (index > 1))
        assert (outcome.code, outcome.out) == ((2 if index == 1 else 130), "")
        *_, note, last = filter(None, outcome.notes)  # click ends the line of a ^C
        assert note == (
            f"note: stopped; {index} of 3 blocks are kept, and the same again with --resume goes on from there "
            f"(without it, it starts over)"
        )
        assert last == ("error: out of luck" if index == 1 else "interrupted")
        assert (f"note: going on after {index - 1} of 3 blocks" in outcome.notes) is (index > 1)
        assert set(left(run)) - {"whole", "whole-scales", "result.json"} == {".resumed.partial"}
    stop(None)
    resumed = run.result(*command, "--resume")

    assert contents(run.folder / "resumed") == contents(run.folder / "whole")
    shards = list((run.folder / "resumed").glob("*.safetensors"))
    assert len(shards) == 1 if shard_bytes == WHOLE else len(shards) > 2
    if "run" in kind:
        assert (run.folder / "resumed-scales/found.pt").read_bytes() == (
            run.folder / "whole-scales/found.pt"
        ).read_bytes()
    assert not (run.folder / ".resumed.partial").exists()
    assert resumed["layers"] == whole["layers"] and resumed["size"] == whole["size"]
    assert resumed["fallback_blocks"] == whole["fallback_blocks"]
    assert 0 < resumed["seconds"]["search"] < resumed["seconds"]["total"]
    if "run" in kind:  # of all blocks, though this run has seen none of them
        assert resumed["seconds"]["forward"] > 0.2 * whole["seconds"]["forward"]


def killed(folder: Path, arguments: tuple, method: str, call: int) -> None:
    """Run the command in a process that kills itself as the writer or the journal is at a method for the n-th time."""
    owner, name = method.split(".")
    code = f"""
import os, signal, itertools
from checkpoints.journal import Journal
from checkpoints.writer import CheckpointWriter
from quantization.work import Work
from checkpoints import journal
journal.WORTH = 0
original, count = {owner}.{name}, itertools.count()
def fatal(*arguments, **named):
    if next(count) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **named)
{owner}.{name} = fatal
from awq_cli.main import main
main()
"""
    environment = {**os.environ, "AWQ_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


KILLS = [
    ("Work._solve", 2, 2),  # within the third block
    ("CheckpointWriter._publish", 0, 3),  # when only the last rename is left
]


@pytest.mark.parametrize(("method", "call", "kept"), KILLS, ids=[kill[0] for kill in KILLS])
def test_a_killed_run_is_resumed(run, deep, text_file, method, call, kept):
    options = ("--solver", "gptq", "--lm_head", "--calib_data", text_file, *CALIBRATION)
    command = quantize(deep, "out/killed", *options, "--scales", "killed-scales/found.pt")
    killed(run.folder, command, method, call)
    assert [path.name for path in (run.folder / "out").iterdir()] == [".killed.partial"]
    outcome = run(*command, "--resume")
    assert outcome.code == 0 and f"note: going on after {kept} of 3 blocks" in outcome.notes
    assert [path.name for path in (run.folder / "out").iterdir()] == ["killed"]
    run.result(*quantize(deep, "whole", *options, "--awq", "run", "--scales", "whole-scales/found.pt"))
    found, expected = contents(run.folder / "out" / "killed"), contents(run.folder / "whole")
    for recipe in (found["awq_recipe.json"], expected["awq_recipe.json"]):
        recipe["options"].pop("awq")  # auto, which the scales file that a killed run left behind does not change
    assert found == expected
    assert (run.folder / "killed-scales/found.pt").read_bytes() == (run.folder / "whole-scales/found.pt").read_bytes()


def test_stopped_in_the_first_block(run, deep, text_file, stop):
    stop(0, KeyboardInterrupt())
    command = quantize(deep, "made/it", "--calib_data", text_file, *CALIBRATION)
    outcome = run(*command)
    assert outcome.code == 130 and outcome.notes[-1] == "interrupted" and "stopped" not in " ".join(outcome.notes)
    assert run.left() == []


def test_an_own_text_is_written_once(run, deep, stop, monkeypatch):
    options = ("--calib_data", "self", *CALIBRATION, "--awq", "run")
    run.result(*quantize(deep, "whole", *options))
    stop(1, KeyboardInterrupt())
    assert run(*quantize(deep, "made", *options)).code == 130
    stop(None)
    monkeypatch.setattr("quantization.streams.self_samples", None)
    run.result(*quantize(deep, "made", *options, "--resume"))
    assert contents(run.folder / "made") == contents(run.folder / "whole")
