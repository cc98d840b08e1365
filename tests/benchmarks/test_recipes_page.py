"""The cells of docs/results.md, by hand, what is on record of them, and the command that makes both."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from benchmarks.recipes import page, speed
from benchmarks.recipes.figures import Draw, Figures, Record, Timed, Value, empty, figures_of, windows_of
from benchmarks.recipes.rows import ROWS
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.speed import Speed
from benchmarks.recipes.steps import Kind, steps
from benchmarks.yardstick.measure import Told
from engine.generate import Token

BY_NAME = {row.name: row for row in ROWS}
SETTINGS = Settings(
    ("tiny",),
    64,
    "/texts/c4.txt",
    16,
    2,
    None,
    None,
    None,
    "/texts/web.txt",
    None,
    200,
    None,
    Path("/f"),
    Path("/e"),
    60,
)
TIMED = Speed("cpu/avx2", "FusedDecoder", 2, 40.0, 1.25, (39.0, 41.0), 750_000_000, 250_000_000)


def score(task: str, metric: str, value: float, stderr: float | None, examples: int = 20) -> dict:
    return dict(task=task, metric=metric, value=value, stderr=stderr, examples=examples)


PERPLEXITY = {
    "window": 2048,
    "dataset": "text.txt",
    "scores": [score("perplexity", "perplexity", 21.456, 1.5), score("perplexity", "top1_agreement", 0.8, None)],
}
QUESTIONS = {"scores": [score("winogrande", "acc", 0.5, 0.035, 200), score("arc_challenge", "acc_norm", 0.25, 0.03)]}
TOLD = {"sums": [1.0, 4.0], "tokens": [10, 10], "median": 0.1, "most": 1.5, "agreement": 0.75}
RESULTS = {
    Kind.QUANTIZE: {
        "size": {"bits_per_weight": 4.3125, "quantized_bytes": 113_928_096},
        "seconds": {"total": 90.0, "search": 80.0},
    },
    Kind.SPEED: {**vars(TIMED), "samples": [39.0, 41.0]},
    Kind.PERPLEXITY: PERPLEXITY,
    Kind.QUESTIONS: QUESTIONS,
    Kind.YARDSTICK: {"web.txt": TOLD, "code": TOLD},
}


def drawn(perplexity: float, *sums: float, bits: float = 4.3125, seconds: float = 60.0) -> Draw:
    told = Told(tuple(sums), (10,) * len(sums), 0.1, 1.5, 0.75)
    return Draw(seconds, 30.0, "some processor", bits, {}, Value(perplexity, 1.5), {"web.txt": told}, 113_928_096)


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
        known = SimpleNamespace(model_bytes=10_000, checkpoint=checkpoint)
        assert speed._size_bytes(SimpleNamespace(about=known, module=module)) == size


@pytest.mark.parametrize("arguments", [[], ["--model_name", "a", "--checkpoint", "b"]])
def test_the_speed_is_of_one_model(arguments):
    refused = CliRunner().invoke(speed.main, [*arguments, "--json", "x.json"])
    assert refused.exit_code == 2 and "give either --model_name or --checkpoint" in refused.output


def test_a_model_that_is_not_there_is_named_in_one_line():
    refused = CliRunner().invoke(speed.main, ["--checkpoint", "/nowhere", "--json", "x.json"])
    assert refused.exit_code == 1 and refused.output.startswith("Error: /nowhere is not a checkpoint")


def test_a_value_and_its_error():
    assert Value(0.123456, 0.0021).cell(3) == "0.123 ± 0.002" and Value(2.0, None).cell(1) == "2.0"


def test_figures_are_those_of_the_steps():
    second = {kind: RESULTS[kind] for kind in (Kind.QUANTIZE, Kind.PERPLEXITY)}
    found = figures_of(BY_NAME["awq-uint4"], {0: RESULTS, 1: second})
    assert list(found.draws) == ["42", "43"] and found.timed.speed == TIMED
    assert found.answers == {"winogrande": Value(0.5, 0.035), "arc_challenge": Value(0.25, 0.03)}
    first = found.draws["42"]
    assert (first.seconds, first.search, first.bits, first.perplexity) == (90.0, 80.0, 4.3125, Value(21.456, 1.5))
    assert first.stored == 113_928_096
    assert first.texts["code"] == Told((1.0, 4.0), (10, 10), 0.1, 1.5, 0.75) and found.draws["43"].texts == {}
    assert windows_of(RESULTS) == "20 windows of 2048 tokens of `text.txt`"


def test_no_minutes_and_no_speeds_where_other_work_ran_beside():
    row = BY_NAME["awq-uint4"]
    timed, busy = (figures_of(row, {0: RESULTS}, untimed) for untimed in (False, True))
    one = busy.draws["42"]
    assert timed.timed is not None and (busy.timed, one.seconds, one.search) == (None, 0, None)
    assert busy.draws["42"].texts == timed.draws["42"].texts
    assert page.quality([row], {row.name: busy}).rows[0][:3] == ["awq-uint4", "1", "-"]
    kinds = [step.kind for step in steps(row, 0, replace(SETTINGS, untimed=True))]
    assert kinds == [Kind.QUANTIZE, Kind.PERPLEXITY, Kind.YARDSTICK]


def test_the_float_model_has_16_bits_and_other_programs_have_versions():
    read = {Kind.PERPLEXITY: PERPLEXITY}
    floats = figures_of(BY_NAME["bfloat16"], {0: read})
    assert floats.draws["42"].bits == 16
    assert page.quality([BY_NAME["bfloat16"]], {"bfloat16": floats}).rows[0][3:5] == ["16.00", "-"]
    made = {**RESULTS[Kind.QUANTIZE], "versions": {"gptqmodel": "7"}}
    assert figures_of(BY_NAME["gptqmodel-w4"], {0: {Kind.QUANTIZE: made, **read}}).draws["42"].versions == {
        "gptqmodel": "7"
    }


def test_a_row_tells_means_scatter_and_differences():
    found = {
        "default-w4": Figures({"42": drawn(20.0, 1.0, 3.0), "43": drawn(22.0, 2.0, 4.0)}, None, {}),
        "learned-w4": Figures({"42": drawn(19.0, 0.5, 2.0, seconds=90.0)}, None, {}),
        "distilled-w4": Figures({"42": drawn(18.0, 0.5, 2.0, seconds=120.0)}, None, {}),
        "mixed-3.8": Figures({"42": drawn(21.0, 2.0, 2.0, bits=3.8)}, None, {}),
    }
    table = page.quality([BY_NAME[name] for name in found], found)
    assert table.headings == ["", *page.QUALITY, "web.txt", "99 %", "top-1", "beside default"]
    default, learned, distilled, mixed = table.rows
    # Two passages of ten tokens: 0.1 and 0.3 a token; the error of their mean is half their difference.
    assert default[:7] == [
        "default-w4", "2", "1.0", "4.31", "114", "21.00 ± 1.50 (1.41)", "0.250 ± 0.100 (0.071)"
    ]  # fmt: skip
    assert default[7:] == ["1.50", "0.750", ""]
    # By 0.05 and 0.1 a token less than the default of the same draw.
    assert learned[2] == "1.5" and distilled[2] == "2.0 (0.5)" and learned[-1] == "-0.075 ± 0.025" and mixed[-1] == ""


def test_what_a_later_run_found_goes_on_record_beside_the_earlier(tmp_path):
    file = tmp_path / "docs" / "results.json"
    assert Record.read(file) is None
    timed = Timed(TIMED, "some processor")
    first = empty(SETTINGS).joined(
        "tiny", "a model", "2 windows", {"default-w4": Figures({"42": drawn(20.0, 1.0)}, timed, {})}
    )
    first.write(file)
    assert Record.read(file) == first
    later = Record.read(file).joined(
        "tiny", "a model", "2 windows",
        {"default-w4": Figures({"43": drawn(21.0, 1.0)}, None, {}), "learned-w4": Figures({}, None, {})},
    )  # fmt: skip
    both = later.rows["tiny"]["default-w4"]
    assert list(both.draws) == ["42", "43"] and both.timed == timed and "learned-w4" in later.rows["tiny"]
    assert later.command() == (
        "python -m benchmarks.recipes --model_name tiny --draws 2 --group_size 64 --calib_data c4.txt --n_samples 16 "
        "--web web.txt --limit 200"
    )
    assert "--draws 1 --eval_data DIR" in recorded(["bfloat16"]).command()


def recorded(names, timed=None) -> Record:
    timed = timed or Timed(TIMED, "some processor")
    answers = {"winogrande": Value(0.5, 0.035)}
    rows = {name: Figures({"42": drawn(20.0, 1.0, 3.0)}, timed, answers) for name in names}
    return empty(SETTINGS).joined("tiny", "A tiny model.", "20 windows of 8 tokens of `text.txt`", rows)


def test_the_page_and_its_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "docs" / "results.md"
    page.write_page(recorded([row.name for row in ROWS]), output)  # all at one point: every name finds a place
    text = output.read_text()
    assert "## tiny\n\nA tiny model.\n\n|  | draws |" in text and "\n\nMinutes on some processor.\n\n" in text
    assert "![divergence against bits a weight](results-tiny-size.svg)" in text and "Not run yet" not in text
    assert "| awq-uint4 | - | 0.500 ± 0.035 | - |" in text
    assert "**Speed** on some processor, threads: 2." in text
    assert "| awq-uint4 | 40.0 ± 1.2 | 10.00 | 0.75 | 0.250 |" in text  # 250 MB x 40 a second
    assert "are to lm-eval's own tasks" in text and "of the first 200 questions each" in text
    assert "20 windows of 8 tokens of `text.txt`" in text and "text `c4.txt`, 16 samples" in text
    files = sorted(file.name for file in output.parent.iterdir())
    assert files == ["results-tiny-size.svg", "results-tiny-time.svg", "results.md"]


def test_rows_of_several_processors_are_told_apart(tmp_path):
    pytest.importorskip("matplotlib")
    record = recorded(["bfloat16"], Timed(TIMED, "another one"))
    other = Figures({"42": replace(drawn(20.0, 1.0, 2.0), processor="another one", versions={"x": "7"})}, None, {})
    record = record.joined("tiny", "A tiny model.", "", {"default-w4": Figures({"42": drawn(9.0, 1.0, 2.0)}, None, {})})
    page.write_page(record.joined("tiny", "", "", {"gptqmodel-w4": other}), tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "Minutes on some processor: bfloat16, default-w4. Minutes on another one: gptqmodel-w4." in text
    assert "Other programs: x 7." in text and "Not run yet: int4wo-g, int4wo-hqq," in text


def test_what_took_too_long_is_named_and_no_row_until_it_is_one(tmp_path):
    pytest.importorskip("matplotlib")
    record = recorded(["bfloat16"]).joined("tiny", "A tiny model.", "", {}, {"autoround-w4": "after 60 minutes (x 7)"})
    assert record.windows == "20 windows of 8 tokens of `text.txt`"
    page.write_page(record, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "Not waited for: autoround-w4 after 60 minutes (x 7)." in text
    assert "autoround-w4" not in text.split("Not run yet: ")[1].split(".")[0]
    again = record.joined("tiny", "", "", {"autoround-w4": record.rows["tiny"]["bfloat16"]})
    assert again.ended["tiny"] == {}


def test_what_was_not_measured_is_not_explained(tmp_path):
    pytest.importorskip("matplotlib")
    record = recorded(["bfloat16"])
    page.write_page(record, tmp_path / "results.md")
    explained = ("**divergences**", "**answers**", "**tokens/s**")
    assert all(name in (tmp_path / "results.md").read_text() for name in explained)
    rows = {"tiny": {"bfloat16": replace(record.rows["tiny"]["bfloat16"], timed=None, answers={})}}
    bare = replace(record, settings={**record.settings, "web": None}, rows=rows)
    page.write_page(bare, tmp_path / "results.md")
    assert not any(name in (tmp_path / "results.md").read_text() for name in explained)


def test_rows_that_were_not_timed_have_no_picture_of_minutes(tmp_path):
    """It was an empty one, with a warning of the library."""
    pytest.importorskip("matplotlib")
    rows = {"default-w4": Figures({"42": drawn(20.0, 1.0, 3.0, seconds=0.0)}, None, {})}
    page.write_page(empty(SETTINGS).joined("tiny", "A tiny model.", "", rows), tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "results-tiny-size.svg" in text and "time.svg" not in text and "\n\n\n" not in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results-tiny-size.svg", "results.md"]
