"""What cannot be resumed is refused in one line, and nothing is lost by asking."""

import os

import pytest

from checkpoints import journal, writer
from tests.awq_cli.conftest import CALIBRATION
from tests.awq_cli.resume.stopping import N_BLOCKS, left, progress, quantize


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
    assert error("--symmetric") == "--symmetric False, this one has True"
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
