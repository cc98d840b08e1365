"""How threads are told to wait for each other."""

import os
import subprocess
import sys

import pytest

from awq_cli import waiting


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Four cores, all of them to be used, and what runs on them at each look."""
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)

    def runs(*counts, cores=(0, 1, 2, 3)):
        looks = iter(counts)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cores), raising=False)
        monkeypatch.setattr(waiting.time, "sleep", lambda seconds: write())

        def write():
            (tmp_path / "loadavg").write_text(f"0.52 1.54 1.92 {next(looks)}/204 12345\n")

        write()

    return runs


@pytest.mark.parametrize(
    ("running", "cores", "busy"),
    [
        ((1, 1, 1, 1), (0, 1, 2, 3), False),  # the one that looks
        ((2, 2, 2, 2), (0, 1, 2, 3), True),
        ((5, 2, 1, 3), (0, 1, 2, 3), False),  # gone a moment later
        ((3, 3, 3, 3), (0, 1), False),  # two cores for the others
        ((4, 4, 5, 4), (0, 1), True),
    ],
)
def test_is_busy_where_others_leave_no_core_to_a_thread(machine, running, cores, busy):
    machine(*running, cores=cores)
    assert waiting.is_busy() is busy
    machine(*running, cores=cores)
    expected = {"OMP_WAIT_POLICY": "PASSIVE"} if busy else {"GOMP_SPINCOUNT": "10000"}
    assert waiting.for_each_other() == expected


@pytest.mark.parametrize("told", [None, "", "0.52 1.54", "0.52 1.54 1.92 none 1"])
def test_a_machine_that_does_not_tell_is_idle(monkeypatch, tmp_path, told):
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    if told is not None:
        (tmp_path / "loadavg").write_text(told)
    assert waiting.is_busy() is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["10000", None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [None, "ACTIVE"]),
        ({"GOMP_SPINCOUNT": "7"}, ["7", None]),
    ],
)
def test_what_the_environment_says_is_left(given, expected):
    asked = (
        "import os; from awq_cli import main, waiting; waiting.is_busy = lambda: False; main._set_environment(); "
        "print([os.environ.get(name) for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run([sys.executable, "-c", asked], env=environment | given, capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr
