"""The table of who opens what: how an answer is read, compared and shown."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.interop import trying
from benchmarks.interop.checkpoints import COUNT, EXPORTS, RECIPES, Reference
from benchmarks.interop.openers import OPENERS, Opener
from benchmarks.interop.page import BEGIN, END, verdict, with_row
from benchmarks.interop.trying import Tried, agreement, answer, attempt, last_line

REFERENCE = Reference("w5 w9", [5, 9], list(range(COUNT)), 0.5)


def test_every_row_has_what_it_opens_and_a_script():
    known = RECIPES.keys() | EXPORTS.keys()
    for opener in OPENERS:
        assert set(opener.opens) <= known and (trying.SCRIPTS / f"{opener.script}.py").is_file()


def test_tokens_are_compared_until_one_differs():
    assert agreement([1, 2, 3], [1, 2, 3]) == 3 and agreement([1, 2, 3], [1, 7, 3]) == 1 and agreement([1], []) == 0
    assert answer('noise\n{"tokens": [1]}\n{"other": 1}\n7\n')["tokens"] == [1] and answer("noise") is None
    assert last_line("Traceback\n  x\na.ValueError: no\nwhat to do\n\n") == "a.ValueError: no"
    assert last_line("killed\n") == "killed" and last_line("") == "no word"


def test_a_script_that_answers_and_one_that_fails(tmp_path, monkeypatch):
    said = {"tokens": [*range(COUNT - 1), 99], "ids": [5, 9]}
    (tmp_path / "good.py").write_text(f"print('loading')\nprint({json.dumps(said)!r})")
    (tmp_path / "bad.py").write_text("raise ValueError('no such format | at all')")
    monkeypatch.setattr(trying, "SCRIPTS", tmp_path)
    rows = []
    for script in ("good", "bad"):
        opener = Opener(script, (), ("pytest",), script, ("w4",))
        rows.append(attempt(opener, Path(sys.executable), "w4", tmp_path / "w4", REFERENCE, "2026-01-02"))
    assert rows[0].opened and rows[0].same == COUNT - 1 and rows[0].ids and rows[0].margin == 0.5
    assert not rows[1].opened and rows[1].said == "ValueError: no such format | at all"
    assert [row.versions for row in rows] == [{"pytest": pytest.__version__}] * 2


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    """What is asked for first, then what is put in anyhow, then without what does not load."""
    ran = []

    def run(command):
        ran.append(list(map(str, command)))
        if "venv" in ran[-1]:
            Path(ran[-1][-1]).mkdir(parents=True)

    monkeypatch.setattr(trying, "_run", run)
    opener = Opener("x", ("a", "b[c]"), (), "x_", ("w4",), without=("d",), anyhow=("a==1",))
    python = trying.environment(opener, tmp_path)
    assert python == trying.environment(opener, tmp_path) == tmp_path / "x" / "a-b[c]" / "bin" / "python"
    assert [command[3:] for command in ran[1:]] == [
        ["install", "-q", "a", "b[c]"], ["install", "-q", "--no-deps", "a==1"], ["uninstall", "-q", "-y", "d"],
    ]  # fmt: skip


PAGE = f"""Before.

{BEGIN}

| opener | checkpoint | result | date |
| --- | --- | --- | --- |
| llama.cpp (llama-cpp-python 0.1) | `w4 as gguf` | same tokens | 2026-01-01 |
| gone (x 1) | `w4` | same tokens | 2026-01-01 |
| mlx-lm | `w4 as awq` | fails: no word | 2026-01-01 |

{END}

Behind.
"""


def test_a_row_takes_the_place_of_the_one_before():
    """Rows are in the order of the openers, and those of openers that are no more go."""
    versions = {"mlx-lm": "2.0", "mlx": "3.1"}
    page = with_row(PAGE, Tried("mlx-lm", "w4 as awq", "2026-01-02", True, COUNT, True, versions=versions))
    page = with_row(page, Tried("vLLM on a CPU", "w4", "2026-01-03", False, said="a | b"))
    assert page.startswith("Before.\n") and page.endswith("\nBehind.\n")
    assert page.split(BEGIN)[1].split(END)[0].strip().splitlines()[2:] == [
        "| mlx-lm (mlx-lm 2.0, mlx 3.1) | `w4 as awq` | same tokens | 2026-01-02 |",
        "| vLLM on a CPU | `w4` | fails: a / b | 2026-01-03 |",
        "| llama.cpp (llama-cpp-python 0.1) | `w4 as gguf` | same tokens | 2026-01-01 |",
    ]


def test_what_a_row_says():
    row = Tried("x", "w4", "2026-01-02", True, COUNT, True)
    assert verdict(row) == "same tokens"
    assert verdict(Tried("x", "w4", "2026-01-02", True, 3, True)) == "opens, the first 3 of 16 tokens are the same"
    assert verdict(Tried("x", "w4", "2026-01-02", True, 3, False)).startswith("opens, its tokenizer gives")
