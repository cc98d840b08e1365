"""Runs that are stopped, for the tests of what becomes of them."""

from pathlib import Path

import pytest

from checkpoints import journal
from quantization.work import Work
from tests.awq_cli.conftest import CALIBRATION
from tests.awq_cli.resume.stopping import N_BLOCKS, quantize


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


@pytest.fixture
def stopped(run, deep, text_file, stop):
    """The command of a run that was stopped in its second block."""
    stop(1, KeyboardInterrupt())
    command = quantize(deep, "made", "--awq", "run", "--calib_data", text_file, *CALIBRATION)
    assert run(*command).code == 130
    stop(None)
    return command
