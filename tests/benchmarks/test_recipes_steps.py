"""The rows of the table of recipes and the commands of their steps."""

import json
from pathlib import Path

import pytest

from awq_cli import main as program
from awq_cli.requests import build
from awq_cli.tasks import quantize
from benchmarks.recipes.rows import ROWS, Family, Row
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.steps import QUESTIONS, RUN, Kind, Step, StepFailed, options, recipe_of, steps
from quantization.recipe import Awq, Recipe

WORK = Path("/folder")
SETTINGS = Settings("tiny", 64, "/texts/c4.txt", 16, "/data", None, 20, 200, 2, WORK)
BARE = Settings("tiny", None, "builtin", 64, None, None, None, None, None, WORK)
BY_NAME = {row.name: row for row in ROWS}


def test_the_rows():
    assert len(BY_NAME) == len(ROWS) == 13
    assert BY_NAME["bfloat16"] == Row("bfloat16", Family.FLOAT, None)
    assert BY_NAME["awq-uint4"].recipe == Recipe(w_bit=4, awq=Awq.AUTO, solver="rtn")
    assert BY_NAME["default-w3-lm_head"] == Row("default-w3-lm_head", Family.THREE_BITS, Recipe(w_bit=3, lm_head=True))
    assert BY_NAME["learned-w4"].recipe == Recipe(w_bit=4, solver="learned")


def test_a_recipe_gets_what_all_rows_share_and_text_where_it_reads_some():
    found = recipe_of(BY_NAME["awq-uint4"].recipe, SETTINGS)
    assert found == Recipe(solver="rtn", group_size=64, calib_data="/texts/c4.txt", n_samples=16, flash_attention=True)
    plain = recipe_of(BY_NAME["int4wo-hqq"].recipe, SETTINGS)
    assert plain == Recipe(awq=Awq.NONE, solver="hqq", group_size=64, flash_attention=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.recipe], ids=lambda row: row.name)
def test_the_command_understands_a_recipes_options_as_the_recipe(row):
    recipe = recipe_of(row.recipe, SETTINGS)
    values = program.command.make_context("run_awq", ["--task", "quantize", *options(recipe)]).params
    assert build(quantize.Request, values).recipe == recipe


def test_the_steps_of_a_quantized_row():
    made, timed, read, asked = steps(BY_NAME["default-w3-lm_head"], SETTINGS)
    checkpoint = "/folder/checkpoints/default-w3-lm_head"
    assert made == Step(
        "default-w3-lm_head",
        Kind.QUANTIZE,
        (
            RUN, "--task", "quantize", "--model_name", "tiny", "--w_bit", "3", "--group_size", "64", "--lm_head",
            "--calib_data", "/texts/c4.txt", "--n_samples", "16", "--flash_attention", "--overwrite", "--output",
            checkpoint,
        ),
    )  # fmt: skip
    assert timed.command == ("-m", "benchmarks.recipes.speed", "--checkpoint", checkpoint, "--threads", "2")
    evaluate = (
        RUN, "--task", "evaluate", "--checkpoint", checkpoint, "--flash_attention", "--num_torch_threads", "2",
        "--eval_data", "/data", "--tasks",
    )  # fmt: skip
    assert (read.kind, read.command) == (Kind.PERPLEXITY, (*evaluate, "perplexity", "--n_windows", "20"))
    assert asked.command == (*evaluate, QUESTIONS, "--limit", "200", "--float_model", "none")


def test_the_steps_of_the_float_row_and_of_nothing_but_defaults():
    timed, read, asked = steps(BY_NAME["bfloat16"], BARE)
    evaluate = (
        RUN,
        "--task",
        "evaluate",
        "--model_name",
        "tiny",
        "--precision",
        "bf16",
        "--flash_attention",
        "--tasks",
    )
    assert timed.command == ("-m", "benchmarks.recipes.speed", "--model_name", "tiny")
    assert read.command == (*evaluate, "perplexity") and asked.command == (*evaluate, QUESTIONS)


WRITE = "import json, os, sys; json.dump({'cache': os.environ['AWQ_CACHE'], 'n': 1}, open(sys.argv[-1], 'w'))"


def test_a_result_is_kept_for_the_same_command(tmp_path):
    step = Step("row", Kind.SPEED, ("-c", WRITE))
    assert step.kept(tmp_path) is None
    found = {"cache": str(tmp_path / "cache"), "n": 1}
    assert step.run(tmp_path) == found and step.kept(tmp_path) == found
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "row.speed.json" and json.loads(file.read_text())["wall_s"] > 0
    assert Step("row", Kind.SPEED, ("-c", WRITE, "--more")).kept(tmp_path) is None
    assert Step("row", Kind.PERPLEXITY, step.command).kept(tmp_path) is None


def test_a_step_that_fails_says_why_in_its_last_line(tmp_path):
    step = Step("row", Kind.SPEED, ("-c", "import sys; sys.exit('first\\nerror: no room')"))
    with pytest.raises(StepFailed, match="^-c .*: error: no room$"):
        step.run(tmp_path)
    assert step.kept(tmp_path) is None


def test_a_command_as_one_would_type_it_again():
    assert SETTINGS.command() == (
        "python -m benchmarks.recipes --model_name tiny --group_size 64 --calib_data c4.txt --n_samples 16 "
        "--eval_data data --n_windows 20 --limit 200 --threads 2"
    )
    assert BARE.command() == "python -m benchmarks.recipes --model_name tiny --calib_data builtin --n_samples 64"
