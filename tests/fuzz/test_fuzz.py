"""A part of `make fuzz` that has time in the suite, and every input that ever ended in anything but one line."""

import shutil
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS
from tests.fuzz.run import outcome, run
from tests.fuzz.stops import mounts, prepared, stopped

CASES = Path(__file__).parent / "cases"

# Inputs for each reader: together some 2,000, of which those that quantize take most of the time.
INPUTS = dict.fromkeys(READERS, 220) | {"scales": 40, "recipe": 40, "journal": 40, "generation config": 100}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """One folder a reader, whose good files are made once."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", READERS)
def test_whatever_comes_in_is_taken_or_refused_in_one_line(name, folders):
    tally = run(READERS[name], folders / name, range(INPUTS[name]))
    assert tally.faults == {}
    assert tally.counts["refused"] > INPUTS[name] // 20 and sum(tally.counts.values()) == INPUTS[name]


@pytest.mark.parametrize("case", sorted(CASES.glob("*/*")), ids=lambda case: f"{case.parent.name} {case.name}")
def test_what_failed_once(case, folders):
    reader, folder = READERS[case.parent.name], folders / case.parent.name
    run(reader, folder, ())
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    shutil.copytree(folder / "good", folder / "damaged")
    shutil.copy(case, folder / "damaged" / reader.file)
    assert outcome(reader, folder / "damaged") in ("taken", "refused")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("stops") / "stage")


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("kind", ["late kill", "disk full" if mounts() else "file size", "memory"])
def test_quantizing_stopped_at_any_moment(stage, kind, seed):
    assert stopped(stage, kind, seed) in ("was done", "begun again", "gone on with")


def test_there_are_some_of_each():
    assert sum(INPUTS.values()) >= 1900 and len(list(CASES.glob("*/*"))) >= 5
