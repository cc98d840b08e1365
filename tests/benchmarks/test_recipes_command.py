"""The command of the table of recipes, its steps faked: what goes on record, what is refused, what fails."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.recipes import __main__ as command
from benchmarks.recipes.about import about
from benchmarks.recipes.figures import Record
from benchmarks.recipes.steps import Kind, StepFailed
from tests.benchmarks.test_recipes_page import RESULTS


def run(*arguments):
    return CliRunner().invoke(command.main, list(map(str, arguments)))


def test_an_unknown_row_is_refused(tmp_path):
    refused = run("--rows", "bfloat16,int8", "--work", tmp_path)
    assert refused.exit_code == 2 and "there is no row int8" in refused.output


def test_the_page_does_not_take_the_records_place(tmp_path):
    refused = run("--rows", "bfloat16", "--work", tmp_path, "--output", tmp_path / "x.json")
    assert refused.exit_code == 2 and "give the page another ending" in refused.output


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "no json", '{"settings": {}, "windows": "", "abouts": {}, "rows": [], "ended": {}}']
)
def test_a_file_that_is_no_record_is_named_in_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    refused = run("--rows", "bfloat16", "--work", tmp_path, "--output", tmp_path / "x.md")
    assert refused.exit_code == 2 and "x.json is no record of figures: " in refused.output
    assert (tmp_path / "x.json").read_text() == text


class Fake(SimpleNamespace):
    """A step that found something once; the yardstick has yet to be laid on. What is run anew fails."""

    def kept(self, work):
        return None if self.kind is Kind.YARDSTICK and not self.laid else RESULTS[self.kind]

    def run(self, work):
        raise StepFailed("-m x: error: no room")


@pytest.fixture
def fake(monkeypatch):
    laid, pages = [], []

    def steps(row, draw, settings):
        if row.peer:
            found = {"ended_after": 60, "versions": {"x": "7"}}
            return [SimpleNamespace(row=row.name, kind=Kind.QUANTIZE, kept=lambda work: found)]
        if row.name == "int4wo-g":
            return [SimpleNamespace(row=row.name, kind=Kind.QUANTIZE, kept=lambda work: None, run=Fake().run)]
        return [Fake(row=row.name, kind=kind, laid=False) for kind in Kind]

    def lay_on(pending, work):
        laid.append([step.row for step in pending])
        for step in pending:
            step.laid = True

    monkeypatch.setattr(command, "find_spec", lambda package: package)
    monkeypatch.setattr(command, "steps", steps)
    monkeypatch.setattr(command, "lay_on", lay_on)
    monkeypatch.setattr(command, "about", lambda model: "A model.")
    monkeypatch.setattr(command, "write_page", lambda record, output: pages.append(record))
    return laid, pages


def test_a_row_that_fails_is_named_and_the_others_are_written(tmp_path, fake):
    laid, pages = fake
    asked = ["--work", tmp_path, "--output", tmp_path / "x.md", "--draws", 2]
    done = run("--rows", "awq-uint4,int4wo-g", *asked)
    assert done.exit_code == 1 and "int4wo-g failed: -m x: error: no room" in done.output
    assert "not in the table unless from an earlier run: int4wo-g" in str(done.exception) + done.output
    assert laid == [["awq-uint4", "awq-uint4"]]  # both draws at once
    (record,) = pages
    assert list(record.rows["smollm2-135m-instruct"]) == ["awq-uint4"] and Record.read(tmp_path / "x.json") == record

    again = run("--rows", "bfloat16,gptqmodel-w4", *asked)
    assert again.exit_code == 0 and list(pages[1].rows["smollm2-135m-instruct"]) == ["awq-uint4", "bfloat16"]
    assert pages[1].ended["smollm2-135m-instruct"]["gptqmodel-w4"].startswith("after 60 minutes (x 7; ")
    other = run("--rows", "bfloat16", *asked, "--limit", 7)
    assert other.exit_code == 2 and "has figures for other values of limit" in other.output


def test_what_is_not_installed_is_told_before_the_first_row(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda package: None)
    asked = ("--rows", "bfloat16", "--work", tmp_path, "--output", tmp_path / "x.md", "--eval_data", tmp_path)
    refused = run(*asked)
    assert refused.exit_code == 2 and fake == ([], [])
    assert "matplotlib and lm_eval not installed; pip install -c constraints.txt -e '.[bench]'" in refused.output


def test_what_a_float_model_is_stands_over_its_table():
    told = about("smollm2-135m-instruct")
    assert "135 million weights" in told and "(Q4_1 69%, Q8_0 31% of its bytes), dequantized" in told
