"""A run that is stopped and resumed makes what it would have made; what cannot be resumed is refused in one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import journal, writer
from qlinear.errors import ModelError
from quantization.work import Work
from tests.awq_cli.conftest import CALIBRATION

N_BLOCKS = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(journal, "WORTH", 0)


@pytest.fixture(scope="session")
def deep(make_model, tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=N_BLOCKS)


@pytest.fixture
def stop(monkeypatch):
    """Let a run stop within the block of that index, or within the rest (index N_BLOCKS), until told otherwise."""

    where, solve, write_rest = {}, Work._solve, Work.write_rest

    def at(index: int | None, error: BaseException | None = None) -> None:
        where.update(index=index, error=error)

    def stopping_solve(self, unit):
        found = solve(self, unit)
        if unit.index == where["index"]:
            raise where["error"]
        return found

    def stopping_rest(self):
        if where["index"] == N_BLOCKS:
            raise where["error"]
        write_rest(self)

    at(None)
    monkeypatch.setattr(Work, "_solve", stopping_solve)
    monkeypatch.setattr(Work, "write_rest", stopping_rest)
    return at


def quantize(model, output: str, *more) -> tuple:
    return ("--task", "quantize", "--model_name", model, "--output", output, *more)


def contents(folder: Path) -> dict[str, bytes | dict]:
    """All files of a checkpoint; of its recipe what does not depend on the clock and where it lies."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    recipe = json.loads(found["awq_recipe.json"])
    for changing in ("seconds", "peak_rss_bytes", "checkpoint", "scales"):
        recipe.pop(changing)
    recipe["options"].pop("scales")
    return found | {"awq_recipe.json": recipe}


def left(run) -> list[str]:
    """The top of the folder the command runs in."""
    return sorted(path.name for path in run.folder.iterdir())


WHOLE, SHARDS = 2**30, 60_000
KINDS = [
    (WHOLE, ("--awq", "run", "--solver", "rtn")),
    (SHARDS, ("--awq", "run", "--w_bit", "3", "--lm_head", "--flash_attention")),
    (WHOLE, ("--awq", "run", "--solver", "hqq", "--lm_head")),
    (SHARDS, ("--awq", "run", "--solver", "gptq", "--lm_head")),
    (WHOLE, ("--awq", "none", "--solver", "gptq")),
    (WHOLE, ("--awq", "none", "--solver", "learned")),
    (SHARDS, ("--awq", "none", "--lm_head")),
]


def reads_text(kind: tuple) -> bool:
    return "run" in kind or "gptq" in kind or "learned" in kind


@pytest.mark.parametrize(("shard_bytes", "kind"), KINDS, ids=[" ".join(kind) for _, kind in KINDS])
def test_a_resumed_run_makes_the_same_bytes(run, deep, text_file, stop, monkeypatch, shard_bytes, kind):
    """Stopped by an error in the second block, by an interrupt in the third, and after the last."""
    monkeypatch.setattr(writer, "SHARD_BYTES", shard_bytes)
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


@pytest.fixture
def stopped(run, deep, text_file, stop):
    """The command of a run that was stopped in its second block."""
    stop(1, KeyboardInterrupt())
    command = quantize(deep, "made", "--awq", "run", "--calib_data", text_file, *CALIBRATION)
    assert run(*command).code == 130
    stop(None)
    return command


def progress(run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.folder / ".made.partial").iterdir()}


def test_other_options_than_those_it_began_with(run, deep, make_model, stopped, text_file, tmp_path):
    """The difference is named, and nothing lost."""
    before = progress(run)

    def error(*more) -> str:
        found = run(*stopped, "--resume", *more).error
        assert progress(run) == before and left(run) == [".made.partial"]
        assert found.startswith("--resume: the run that stopped had ")
        assert found.endswith("; give what it had, or start over without --resume")
        return found.removeprefix("--resume: the run that stopped had ").partition(";")[0]

    assert error("--w_bit", "3") == "--w_bit 4, this one has 3"
    assert error("--group_size", "32") == "--group_size 64, this one has 32"
    assert error("--solver", "hqq") == "--solver gptq, this one has hqq"
    assert error("--lm_head") == "--lm_head False, this one has True"
    assert error("--flash_attention") == "--flash_attention False, this one has True"
    assert error("--seed", "7") == "--seed 42, this one has 7"
    assert error("--n_samples", "5") == "--n_samples 4, this one has 5"
    assert error("--seqlen", "16") == "--seqlen 32, this one has 16"
    assert error("--calib_data", "builtin") == "--calib_data prose.txt, this one has builtin"
    (tmp_path / "prose.txt").write_text(text_file.read_text().replace("value", "thing"))
    assert error("--calib_data", tmp_path / "prose.txt").startswith("calibration text of sha256 ")
    other = make_model(tmp_path / "deep", num_hidden_layers=N_BLOCKS, rms_norm_eps=1e-4)
    assert error("--model_name", other).startswith("the model of fingerprint ")
    none = run(*quantize(deep, "made", "--awq", "none"), "--resume")
    assert "had --solver gptq, this one has rtn" in none.error
    assert run(*stopped, "--resume").code == 0


def test_another_version_of_a_package(run, stopped, monkeypatch):
    monkeypatch.setattr("quantization.resume.__version__", "99")
    assert "had run-awq " in run(*stopped, "--resume").error and (run.folder / ".made.partial").exists()


def test_another_scales_file(run, deep, text_file, stop):
    """Loaded scales count by what they are, not by their name."""
    for name, seed in (("a.pt", 1), ("b.pt", 2)):
        options = ("--awq", "run", "--calib_data", text_file, *CALIBRATION, "--seed", seed, "--overwrite")
        run.result(*quantize(deep, "searched", *options, "--scales", name))
    load = quantize(deep, "made", "--awq", "load")
    stop(1, KeyboardInterrupt())
    assert run(*load, "--scales", "a.pt").code == 130
    stop(None)
    assert run(*load, "--scales", "b.pt", "--resume").error.startswith(
        "--resume: the run that stopped had --scales of sha256 "
    )
    (run.folder / "a.pt").rename(run.folder / "c.pt")
    assert run(*load, "--scales", "c.pt", "--resume").code == 0


def test_nothing_to_resume(run, deep):
    command = quantize(deep, "new/made", "--awq", "none", "--resume")
    assert run(*command).error == (
        "--resume: no run that was stopped has left anything for new/made; leave --resume out to start"
    )
    assert run.left() == []
    assert run(*quantize(deep, "made", "--awq", "none")).code == 0
    assert run(*quantize(deep, "made", "--awq", "none", "--resume")).error.startswith("made exists already; give ")


def test_starting_over(run, stopped, stop):
    """It is said, and the progress that was there stays until there is a first block in its place."""
    before = progress(run)
    note = "note: starting over; what an earlier run left for --resume goes when the first block is done"
    stop(0, KeyboardInterrupt())
    outcome = run(*stopped)
    assert outcome.code == 130 and note in outcome.notes and progress(run) == before
    stop(1, KeyboardInterrupt())
    assert note in run(*stopped).notes
    assert before.keys() & progress(run).keys() == {"journal.json"}
    stop(None)
    assert note in run(*stopped).notes
    assert left(run) == ["cache", "made"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"[]"),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"units"', b'"unite"')),
    ],
    ids=["cut off", "empty", "missing", "foreign", "altered"],
)
def test_damaged_progress(run, stopped, damage):
    for name, whole in progress(run).items():
        path = run.folder / ".made.partial" / name
        damage(path)
        if path.exists() and path.read_bytes() == whole:
            continue
        if name == "journal.json" and not path.exists():
            assert "left anything for made" in run(*stopped, "--resume").error
        else:
            error = run(*stopped, "--resume").error
            assert error.startswith(f"the progress in {run.folder.resolve()}/.made.partial is damaged (")
            assert error.endswith("); start over without --resume")
        assert progress(run).keys() | {name} == progress(run).keys() | {path.name}
        path.write_bytes(whole)
    (run.folder / ".made.partial" / "journal.json").write_text("torn")
    assert run(*stopped).code == 0 and left(run) == ["cache", "made"]


def test_two_runs_at_once(run, deep, stopped):
    """The second is refused, with --resume and without, and the first not disturbed."""
    before = progress(run)
    with writer.CheckpointWriter(run.folder / "made", resume=True):
        for more in ((), ("--resume",), ("--overwrite",)):
            assert run(*stopped, *more).error == (
                "another run is writing made; wait until it has ended, or give another --output"
            )
        assert progress(run).keys() == before.keys() | {"lock"}
    assert progress(run) == before
    assert run(*stopped, "--resume").code == 0


def test_a_disk_that_fills_up(run, deep, text_file, stop, monkeypatch):
    """Where what is kept cannot be written, what was kept before stays, and only that."""
    save, count = journal.save_file, iter(range(100))

    def full(tensors, path, metadata):
        save(tensors, path, metadata)
        if next(count) == 4:
            os.truncate(path, 100)
            raise OSError(28, "No space left on device")

    command = quantize(deep, "made", "--awq", "run", "--calib_data", text_file, *CALIBRATION)
    monkeypatch.setattr(journal, "save_file", full)
    outcome = run(*command)
    assert "No space left on device" in outcome.error and outcome.notes[-2].startswith("note: stopped; 1 of 3 blocks ")
    assert len(progress(run)) == 4  # the journal and a block's tensors, scales and state
    monkeypatch.setattr(journal, "save_file", save)
    assert run(*command, "--resume").code == 0


def test_quick_steps_are_not_kept_one_by_one(run, deep, stop, monkeypatch):
    """Only the first: within a minute, no other is worth it."""
    monkeypatch.setattr(journal, "WORTH", 10**9)
    writes, write = [], journal.Journal.write
    monkeypatch.setattr(journal.Journal, "write", lambda self, record: (writes.append(record), write(self, record)))
    run.result(*quantize(deep, "made", "--awq", "none"))
    assert [record["tally"]["units"] for record in writes] == [1, N_BLOCKS, N_BLOCKS]


def test_resume_is_for_quantizing(run):
    for task in ("decode", "benchmark", "perplexity", "evaluate"):
        assert run("--task", task, "--resume").error == f"--resume means nothing for --task {task}; leave it out"
