"""The tables of the cuda target's benchmark from rows that are known, and what it says where there is no GPU."""

import json
from dataclasses import asdict

import pytest
import torch
from click.testing import CliRunner

from benchmarks.cuda.__main__ import main, saved
from benchmarks.cuda.report import LinearRun, ModelRun, Report
from benchmarks.cuda.tables import markdown, tables


@pytest.fixture
def report():
    linears = [
        LinearRun("ours w4", 4, 12288, 4096, 1, 10e-6, 27_000_000),
        LinearRun("cuBLAS bf16", 16, 12288, 4096, 1, 40e-6, 100_663_296),
        LinearRun("ours w4", 4, 12288, 4096, 16, 20e-6, 27_000_000),
    ]
    models = [
        ModelRun("bf16", 5e-3, 190.0, 0.02, 13_000_000_000, 14_000_000_000, True),
        ModelRun("w4 g64", 2e-3, 480.0, 0.03, 3_600_000_000, 4_500_000_000, True, {"awq_attend": 0.3e-3}),
    ]
    rates = {268_435_456: 3.0e12, 1_073_741_824: 2.4e12}
    return Report("a GPU", {"torch": "2"}, "cuda/own", rates, {"w4": 2e-3}, linears, models, ["humming is not here"])


def rows(report, beginning):
    (found,) = [table for table in tables(report) if table.title.startswith(beginning)]
    return found.rows


def test_shares_are_of_the_best_copy_rate(report):
    assert rows(report, "One row") == [["qkv 12288 x 4096", "10.0 (0.90)", "40.0 (0.84)"]]


def test_what_was_not_measured_is_a_dash(report):
    assert rows(report, "12288 x 4096") == [
        ["ours w4", "10.0", "-", "-", "-", "20.0", "-", "-"],
        ["cuBLAS bf16", "40.0", "-", "-", "-", "-", "-", "-"],
    ]


def test_models_are_compared_with_bfloat16(report):
    assert rows(report, "A random Llama-2-7B") == [
        ["bf16", "200", "190", "1.00", "0.87", "20.0", "13.00", "14.00", "yes"],
        ["w4 g64", "500", "480", "2.50", "0.60", "30.0", "3.60", "4.50", "yes"],
    ]
    assert rows(report, "Milliseconds") == [["w4 g64", "awq_attend", "0.300"]]


def test_the_page_says_where_and_what_was_left_out(report):
    page = markdown(report)
    assert page.startswith(
        "a GPU; torch 2; `cuda/own`. Copies, read and written: 3.00 TB/s of 268 MB, 2.40 TB/s of 1074"
    )
    assert "w4 2.0e-03. Left out: humming is not here." in page


def test_a_saved_run_is_read_back(report, tmp_path):
    file = tmp_path / "cuda.json"
    file.write_text(json.dumps(asdict(report)))
    assert saved(file) == report
    done = CliRunner().invoke(main, ["--from", str(file)])
    assert done.exit_code == 0 and "10.0 (0.90)" in done.output


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 1
    assert done.output == ("Error: torch finds no CUDA device on this machine, and without one nothing is measured\n")
