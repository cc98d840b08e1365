"""The rows of the table of recipes and the commands of their steps."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from awq_cli import main as program
from awq_cli.requests import build
from awq_cli.tasks import quantize
from benchmarks.interop.writers import WRITERS
from benchmarks.recipes import peers
from benchmarks.recipes.peers import with_groups
from benchmarks.recipes.rows import ROWS, Family, Row
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.steps import QUESTIONS, RUN, TOGETHER, Kind, Step, StepFailed, lay_on, options, recipe_of, steps
from checkpoints.local import slug
from quantization.recipe import Awq, Recipe
from tests.quantized import word_tokenizer

WORK, ENVIRONMENTS = Path("/folder"), Path("/environments")
SETTINGS = Settings(
    ("tiny",), 64, "/texts/c4.txt", 16, 3, "/data", None, 20, "/texts/web.txt", 8, 200, 2, WORK, ENVIRONMENTS, 60
)
BARE = Settings(("tiny",), None, "builtin", 64, 1, None, None, None, None, None, None, None, WORK, ENVIRONMENTS, 1)
BY_NAME = {row.name: row for row in ROWS}
OURS = [row for row in ROWS if row.recipe]
PEERS = [row for row in ROWS if row.peer]


def test_the_rows():
    assert len(BY_NAME) == len(ROWS) and {row.family for row in ROWS} == set(Family)
    assert BY_NAME["bfloat16"] == Row("bfloat16", Family.FLOAT)
    assert BY_NAME["awq-uint4"].recipe == Recipe(w_bit=4, awq=Awq.AUTO, solver="rtn")
    assert BY_NAME["default-w3-lm_head"] == Row("default-w3-lm_head", Family.THREE_BITS, Recipe(w_bit=3, lm_head=True))
    assert BY_NAME["learned-w4"].recipe == Recipe(w_bit=4, solver="learned")
    assert BY_NAME["distilled-w3"].recipe == Recipe(w_bit=3, distill=100)
    assert [row.name for row in ROWS if not row.drawn and not row.peer] == [
        "bfloat16", "int4wo-g", "int4wo-hqq", "rounded-w3"
    ]  # fmt: skip


def test_a_recipe_gets_what_all_rows_share_and_text_where_it_reads_some():
    found = recipe_of(BY_NAME["awq-uint4"], 0, SETTINGS)
    assert found == Recipe(solver="rtn", group_size=64, calib_data="/texts/c4.txt", n_samples=16, flash_attention=True)
    assert recipe_of(BY_NAME["awq-uint4"], 2, SETTINGS) == replace(found, seed=Recipe.seed + 2)
    plain = recipe_of(BY_NAME["int4wo-hqq"], 0, SETTINGS)
    assert plain == Recipe(awq=Awq.NONE, solver="hqq", group_size=64, flash_attention=True)
    assert recipe_of(BY_NAME["mixed-3.3"], 0, SETTINGS).group_size is None  # which are part of the mixture


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_the_command_understands_a_recipes_options_as_the_recipe(row):
    recipe = recipe_of(row, 1, SETTINGS)
    values = program.command.make_context("run_awq", ["--task", "quantize", *options(recipe)]).params
    assert build(quantize.Request, values).recipe == recipe


def test_the_steps_of_a_quantized_row():
    made, timed, read, asked, apart = steps(BY_NAME["default-w3-lm_head"], 0, SETTINGS)
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
        "--tasks",
    )  # fmt: skip
    alone, data = ("--float_model", "none"), ("--eval_data", "/data")
    assert (read.kind, read.command) == (Kind.PERPLEXITY, (*evaluate, "perplexity", *data, "--n_windows", "20", *alone))
    assert asked.command == (*evaluate, QUESTIONS, *data, "--limit", "200", *alone)
    assert apart.command == (
        "-m", "benchmarks.yardstick", "--model_name", "tiny", "--web", "/texts/web.txt", "--passages", "8",
        "--recipe", f"default-w3-lm_head={checkpoint}",
    )  # fmt: skip


def test_a_text_of_its_own_is_read_whether_questions_are_asked_or_not():
    """So that a table gets its questions later, and its perplexities are not measured again."""
    given = replace(SETTINGS, dataset="/texts/test.txt")
    found = [list(steps(BY_NAME["default-w4"], 0, replace(given, eval_data=data))) for data in ("/data", None)]
    read = [next(step for step in some if step.kind is Kind.PERPLEXITY) for some in found]
    assert read[0] == read[1] and "--eval_data" not in read[0].command
    assert [sum(step.kind is Kind.QUESTIONS for step in some) for some in found] == [1, 0]


def test_later_draws_are_neither_timed_nor_asked_questions():
    made, read, apart = steps(BY_NAME["default-w4"], 1, SETTINGS)
    assert [step.kind for step in (made, read, apart)] == [Kind.QUANTIZE, Kind.PERPLEXITY, Kind.YARDSTICK]
    assert made.row == "default-w4.1" and made.command[-1] == "/folder/checkpoints/default-w4.1"
    assert "--seed" in made.command and apart.command[-1] == "default-w4.1=/folder/checkpoints/default-w4.1"


@pytest.mark.parametrize("row", PEERS, ids=lambda row: row.name)
def test_other_programs_are_told_the_bits_and_groups_and_are_not_timed(row):
    made, read, apart = steps(row, 0, SETTINGS)
    assert made.command[:2] == ("-m", "benchmarks.recipes.peers") and read.kind is Kind.PERPLEXITY
    context = click.Context(peers.main)
    given = peers.main.make_context("peers", [*made.command[2:], "--json", "x"], parent=context).params
    assert (given["bits"], given["group_size"], given["n_samples"]) == (row.peer.bits, 64, 16)
    assert given["name"] in {writer.name for writer in WRITERS} and given["symmetric"] == row.peer.symmetric
    told = json.dumps(with_groups(given["how"], 64))
    assert told.count('"group_size": 64') == 1 and f'bits": {row.peer.bits}' in told
    assert given["patience"] == 60


def test_a_program_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    from benchmarks.interop import trying

    (tmp_path / "write_gptqmodel.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(trying, "SCRIPTS", tmp_path)
    monkeypatch.setattr(trying, "environment", lambda writer, folder: Path(sys.executable))
    monkeypatch.setattr(trying, "versions", lambda python, names: {"gptqmodel": "7"})
    monkeypatch.setattr(peers, "_floats", lambda name, place: (SimpleNamespace(tokenizer=word_tokenizer()), place))
    (tmp_path / "text.txt").write_text("w3 w4 " * 600)
    told = [
        "--writer", "GPTQModel", "--bits", "3", "--how", "{}", "--model_name", "tiny", "--group_size", "64",
        "--calib_data", tmp_path / "text.txt", "--n_samples", "1", "--patience", "0.02", "--environments", tmp_path,
        "--output", tmp_path / "made", "--json", tmp_path / "found.json",
    ]  # fmt: skip
    done = CliRunner().invoke(peers.main, list(map(str, told)), catch_exceptions=False)
    assert done.exit_code == 0 and json.loads((tmp_path / "found.json").read_text()) == {
        "ended_after": 0.02, "versions": {"gptqmodel": "7"}
    }  # fmt: skip


def test_the_steps_of_the_float_row_and_of_nothing_but_defaults():
    timed, read = steps(BY_NAME["bfloat16"], 0, BARE)
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
    assert read.command == (*evaluate, "perplexity")


def test_a_models_work_lies_apart():
    found = replace(SETTINGS, models=("a", "/models/b.gguf")).of_model("/models/b.gguf")
    assert (found.model, found.work) == ("/models/b.gguf", WORK / slug("b.gguf"))
    assert found.shared()["calib_data"] == "c4.txt" and found.shared()["group_size"] == "64"
    of_two = [SETTINGS.of_model(f"/models/Qwen2.5-{size}").work for size in ("0.5B", "1.5B")]
    assert of_two[0] != of_two[1]


LAY = """
import json, sys
names = [word.partition("=")[0] for word, before in zip(sys.argv[1:], sys.argv) if before == "--recipe"]
json.dump({text: {name: [name + text] for name in names} for text in ("web", "code")}, open(sys.argv[-1], "w"))
"""


def test_the_yardstick_is_laid_on_many_at_once(tmp_path):
    pending = [
        Step(f"row{index}", Kind.YARDSTICK, ("-c", LAY, "--web", "w", "--recipe", f"row{index}=/x"))
        for index in range(TOGETHER + 2)
    ]
    lay_on(pending, tmp_path)
    for step in pending:
        assert step.kept(tmp_path) == {"web": f"{step.row}web", "code": f"{step.row}code"}


WRITE = "import json, os, sys; json.dump({'cache': os.environ['AWQ_CACHE'], 'n': 1}, open(sys.argv[-1], 'w'))"


def test_a_result_is_kept_for_the_same_command(tmp_path):
    step = Step("row", Kind.SPEED, ("-c", WRITE))
    assert step.kept(tmp_path) is None
    found = {"cache": str(tmp_path / "cache" / "row"), "n": 1}
    assert step.run(tmp_path) == found and step.kept(tmp_path) == found
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "row.speed.json" and json.loads(file.read_text())["wall_s"] > 0
    assert Step("row", Kind.SPEED, ("-c", WRITE, "--more")).kept(tmp_path) is None
    assert Step("row", Kind.PERPLEXITY, step.command).kept(tmp_path) is None


SEARCH = """
import json, os, sys
searched = os.path.isdir(os.environ["AWQ_CACHE"])
os.makedirs(os.environ["AWQ_CACHE"], exist_ok=True)
json.dump(searched, open(sys.argv[-1], "w"))
"""


def test_scales_are_searched_again_with_the_rest(tmp_path):
    """Else the seconds of a row that is made once more would be those of a run that finds them in the cache."""
    step = Step("row", Kind.QUANTIZE, ("-c", SEARCH))
    assert [step.run(tmp_path) for _ in range(2)] == [False, False]


def test_a_step_that_fails_says_why_in_its_last_line(tmp_path):
    step = Step("row", Kind.SPEED, ("-c", "import sys; sys.exit('first\\nerror: no room')"))
    with pytest.raises(StepFailed, match="^-c .*: error: no room$"):
        step.run(tmp_path)
    assert step.kept(tmp_path) is None
