"""python -m benchmarks.cpu: its options, and what it does without measuring."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.cpu import __main__ as command
from benchmarks.cpu.report import Shape
from tests.benchmarks.reports import WHOLE


def run(*arguments):
    return CliRunner().invoke(command.main, list(map(str, arguments)))


@pytest.fixture
def asked(monkeypatch):
    """The options that a measurement was asked for, in place of one."""
    found = {}
    monkeypatch.setattr(command, "measure", lambda options: found.update(options) or WHOLE)
    return found


def test_lists_are_read(asked):
    run("--shapes", "64x128,256x32", "--sweep_rows", "1,16", "--end_to_end", "")
    assert (asked["shapes"], asked["sweep_rows"], asked["end_to_end"]) == (
        (Shape(64, 128), Shape(256, 32)),
        (1, 16),
        (),
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--shapes", "64"), "64 has to be NxK, 4096x4096 say"),
        (("--shapes", "64x0"), "64x0 has to be NxK, 4096x4096 say"),
        (("--sweep_rows", "1,-2"), "-2 has to be a number from 1 up"),
        (("--end_to_end", "8b"), "8b: has to be among 1.1b,7b,30b-a3b-12l,smollm2"),
        (("--group_size", "100"), "'100' is not one of '32', '64', '128', '256'"),
    ],
)
def test_what_cannot_be_run_is_refused(asked, arguments, message):
    refused = run(*arguments)
    assert refused.exit_code == 2 and message in refused.output and asked == {}


def test_quick_leaves_alone_what_is_given(asked):
    run("--quick", "--rounds", "5", "--seconds", "2")
    assert (asked["rounds"], asked["seconds"]) == (5, 2.0)
    assert (asked["shapes"], asked["sweep_rows"], asked["end_to_end"], asked["starts"]) == (
        (),
        (1, 16, 128),
        ("smollm2",),
        1,
    )


def test_the_default_shape_is_run_at_every_m_the_others_at_a_few():
    other = Shape(64, 128)
    jobs = command.linear_jobs((command.DEFAULT_SHAPE, other), (1, 2))
    assert jobs == {command.DEFAULT_SHAPE: [1, 2, 128, 512], other: [1, 128, 512]}
    assert command.linear_jobs((), ()) == {command.DEFAULT_SHAPE: []}


def test_what_was_measured_is_written_and_shown_again_from_its_file(asked, tmp_path):
    measured = run("--json", tmp_path / "new" / "cpu.json")
    again = run("--plot_from", tmp_path / "new" / "cpu.json")
    assert measured.exit_code == again.exit_code == 0 and measured.output == again.output
    assert "Microseconds of one 1000 x 500 matmul on M rows" in again.output


def test_a_file_of_another_layout_is_refused_in_one_line(tmp_path):
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": {}, "rows": [], "starts": []}))
    refused = run("--plot_from", tmp_path / "cpu.json")
    told = f"Error: {tmp_path}/cpu.json is a report of layout 1, this version reads layout 2; measure again\n"
    assert (refused.exit_code, refused.output) == (1, told)
