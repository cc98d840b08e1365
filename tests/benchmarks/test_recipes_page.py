"""The cells of docs/results.md, by hand, and the command that makes it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.recipes import __main__ as command
from benchmarks.recipes import page, speed
from benchmarks.recipes.page import Figures, Value
from benchmarks.recipes.rows import ROWS
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.speed import Speed
from benchmarks.recipes.steps import Kind, StepFailed
from engine.generate import Token

BY_NAME = {row.name: row for row in ROWS}
SETTINGS = Settings("tiny", 64, "/texts/c4.txt", 16, None, None, None, None, None, Path("/folder"))
TIMED = Speed("cpu/avx2", "FusedDecoder", 2, 40.0, 1.25, (39.0, 41.0), 750_000_000, 250_000_000)


def score(task: str, metric: str, value: float, stderr: float | None, examples: int = 20) -> dict:
    return dict(task=task, metric=metric, value=value, stderr=stderr, examples=examples)


PERPLEXITY = {
    "window": 2048,
    "dataset": "text.txt",
    "scores": [
        score("perplexity", "perplexity", 21.456, 1.5),
        score("perplexity", "kl_divergence", 0.12345, 0.0021),
        score("perplexity", "top1_agreement", 0.8, None),
    ],
}
QUESTIONS = {"scores": [score("winogrande", "acc", 0.5, 0.035, 200), score("arc_challenge", "acc_norm", 0.25, 0.03)]}
RESULTS = {
    Kind.QUANTIZE: {"size": {"bits_per_weight": 4.3125}},
    Kind.SPEED: {**vars(TIMED), "samples": [39.0, 41.0]},
    Kind.PERPLEXITY: PERPLEXITY,
    Kind.QUESTIONS: QUESTIONS,
}


def test_tokens_a_second_count_the_prompts_time():
    assert speed.rate([Token(7, 0.5), Token(8, 0.1), Token(8, 0.1), Token(9, 0.1)]) == pytest.approx(5.0)


def test_the_standard_error_of_a_mean():
    assert speed.standard_error([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((2.5 / 5) ** 0.5)


@pytest.mark.parametrize("tied, size", [(True, 10_000), (False, 10_000 - 2 * 40)])
def test_an_embedding_that_is_not_the_head_is_no_part_of_the_size(tied, size, tmp_path):
    config = dict(vocab_size=4, hidden_size=10, tie_word_embeddings=tied)
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(to_dict=lambda: config)))
    for checkpoint in (None, str(tmp_path)):
        about = SimpleNamespace(model_bytes=10_000, checkpoint=checkpoint)
        assert speed._size_bytes(SimpleNamespace(about=about, module=module)) == size


@pytest.mark.parametrize("arguments", [[], ["--model_name", "a", "--checkpoint", "b"]])
def test_the_speed_is_of_one_model(arguments):
    refused = CliRunner().invoke(speed.main, [*arguments, "--json", "x.json"])
    assert refused.exit_code == 2 and "give either --model_name or --checkpoint" in refused.output


def test_a_model_that_is_not_there_is_named_in_one_line():
    refused = CliRunner().invoke(speed.main, ["--checkpoint", "/nowhere", "--json", "x.json"])
    assert refused.exit_code == 1 and refused.output.startswith("Error: /nowhere is not a checkpoint")


def test_a_value_and_its_error():
    assert Value(0.123456, 0.0021).cell(3) == "0.123 ± 0.002" and Value(2.0, None).cell(1) == "2.0"


def test_the_cells_of_a_row():
    figures = Figures.of(BY_NAME["awq-uint4"], RESULTS)
    assert figures.cells() == [
        "awq-uint4",
        "40.0 ± 1.2",
        "10.00",  # 250 MB x 40 a second
        "0.75",
        "0.250",
        "4.31",
        "21.46 ± 1.50",
        "0.123 ± 0.002",
        "0.800",
        "-",  # TruthfulQA was not asked
        "0.500 ± 0.035",
        "0.250 ± 0.030",
    ]
    assert figures.text == "20 windows of 2048 tokens of `text.txt`" and figures.perplexity == 21.456
    assert len(page.HEADINGS) == 12


def test_the_float_model_has_16_bits():
    results = {kind: found for kind, found in RESULTS.items() if kind is not Kind.QUANTIZE}
    assert Figures.of(BY_NAME["bfloat16"], results).cells()[5] == "16.00"


def test_the_page():
    both = [Figures.of(BY_NAME[name], RESULTS) for name in ("bfloat16", "awq-uint4")]
    both[0] = dataclasses.replace(both[0], speed=dataclasses.replace(TIMED, backend="cpu/torch bf16"))
    head, made, table, picture, note = page.markdown(both, SETTINGS, ["![a](b.svg)"]).split("\n\n", 4)
    assert head == "# tiny: what each recipe costs and keeps" and picture == "![a](b.svg)"
    assert f"Made by `{SETTINGS.command()}` on " in made
    assert "threads: 2, kernels: cpu/avx2, through: FusedDecoder." in made
    assert "Not run: int4wo-g, int4wo-hqq, awq-hqq-int4, default-w4," in made
    assert [line.split(" | ")[0] for line in table.splitlines()] == ["| ", "| ---", "| bfloat16", "| awq-uint4"]
    assert "are of 20 windows of 2048 tokens of `text.txt`:" in note and "calibrated on `c4.txt`" in note


def test_the_page_and_its_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    figures = [Figures.of(row, RESULTS) for row in ROWS]  # all at one point: every name finds a place
    page.write_page(figures, SETTINGS, tmp_path / "docs" / "results.md")
    assert "![perplexity against tokens/s](results-speed.svg)" in (tmp_path / "docs" / "results.md").read_text()
    files = sorted(file.name for file in (tmp_path / "docs").iterdir())
    assert files == ["results-size.svg", "results-speed.svg", "results.md"]


def run(*arguments):
    return CliRunner().invoke(command.main, list(map(str, arguments)))


def test_an_unknown_row_is_refused(tmp_path):
    refused = run("--rows", "bfloat16,int8", "--work", tmp_path)
    assert refused.exit_code == 2 and "there is no row int8" in refused.output


def test_a_row_that_fails_is_named_and_the_others_are_written(tmp_path, monkeypatch):
    def fake(row, settings):
        if row.name == "int4wo-g":
            raise StepFailed("-m x: error: no room")
        return row.name

    written = []
    monkeypatch.setattr(command, "run_row", fake)
    monkeypatch.setattr(command, "write_page", lambda figures, settings, output: written.append((figures, output)))
    done = run("--rows", "awq-uint4,int4wo-g,bfloat16", "--work", tmp_path, "--output", tmp_path / "x.md")
    assert written == [(["bfloat16", "awq-uint4"], tmp_path / "x.md")] and done.exit_code == 1
    assert "int4wo-g failed: -m x: error: no room" in done.output
    assert "rows that failed and are not in the table: int4wo-g" in str(done.exception) + done.output


def test_what_is_kept_is_not_run_again(monkeypatch, tmp_path):
    class Kept(SimpleNamespace):
        def kept(self, work):
            return RESULTS[self.kind]

    monkeypatch.setattr(command, "steps", lambda row, settings: [Kept(kind=kind) for kind in Kind])
    assert command.run_row(BY_NAME["awq-uint4"], SETTINGS) == Figures.of(BY_NAME["awq-uint4"], RESULTS)
