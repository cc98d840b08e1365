"""The table of who opens what: how an answer is read, compared and shown."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.interop import foreign, trying
from benchmarks.interop.checkpoints import COUNT, EXPORTS, PROMPTS, RECIPES, Reference
from benchmarks.interop.openers import OPENERS, Opener
from benchmarks.interop.page import END, FOREIGN, OPENED, cells, verdict
from benchmarks.interop.reading import Compared, compare, tell
from benchmarks.interop.trying import Tried, agreement, answer, attempt, last_line
from benchmarks.interop.writers import WRITERS, Writer

REFERENCE = Reference("w5 w9", [5, 9], list(range(COUNT)), 0.5)


def test_every_row_has_what_it_opens_and_a_script():
    known = RECIPES.keys() | EXPORTS.keys()
    for opener in OPENERS:
        assert set(opener.opens) <= known and (trying.SCRIPTS / f"{opener.script}.py").is_file()


def test_every_writer_has_a_script_and_rows_of_its_own():
    assert len(set(FOREIGN.order)) == len(FOREIGN.order) == sum(len(writer.makes) for writer in WRITERS)
    for writer in WRITERS:
        assert (trying.SCRIPTS / f"{writer.script}.py").is_file() and writer.script.startswith("write_")
        json.dumps(writer.makes)


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

{OPENED.begin}

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
    page = OPENED.with_row(PAGE, cells("mlx-lm", versions, "w4 as awq", "same tokens", "2026-01-02"))
    page = OPENED.with_row(page, cells("vLLM on a CPU", {}, "w4", "fails: a | b", "2026-01-03"))
    assert page.startswith("Before.\n") and page.endswith("\nBehind.\n")
    assert page.split(OPENED.begin)[1].split(END)[0].strip().splitlines()[2:] == [
        "| mlx-lm (mlx-lm 2.0, mlx 3.1) | `w4 as awq` | same tokens | 2026-01-02 |",
        "| vLLM on a CPU | `w4` | fails: a / b | 2026-01-03 |",
        "| llama.cpp (llama-cpp-python 0.1) | `w4 as gguf` | same tokens | 2026-01-01 |",
    ]


def test_what_a_row_says():
    row = Tried("x", "w4", "2026-01-02", True, COUNT, True)
    assert verdict(row) == "same tokens"
    assert verdict(Tried("x", "w4", "2026-01-02", True, 3, True)) == "opens, the first 3 of 16 tokens are the same"
    assert verdict(Tried("x", "w4", "2026-01-02", True, 3, False)).startswith("opens, its tokenizer gives")


def test_what_is_not_written_and_what_is_refused(tmp_path, monkeypatch):
    """What failed is not left behind, for the next run would take it for a checkpoint."""
    start = """
import json, pathlib, sys
pathlib.Path(sys.argv[2]).mkdir()
given = json.loads(pathlib.Path(sys.argv[3]).read_text())
"""
    (tmp_path / "write_bad.py").write_text(f"{start}raise ValueError(f'{{sys.argv[1]}}: no {{given[\"how\"]}}')")
    (tmp_path / "write_empty.py").write_text(f"{start}print(json.dumps(dict(tokens=given['prompts'])))")
    monkeypatch.setattr(foreign, "SCRIPTS", tmp_path)
    monkeypatch.setattr(foreign, "_floats", lambda place: tmp_path)
    monkeypatch.setattr(foreign, "_given", lambda: dict(prompts=[[3]]))
    bad, empty = (Writer(f"X {kind}", (), (), f"write_{kind}", {"awq, b": {"bits": 4}}) for kind in ("bad", "empty"))
    python, place = Path(sys.executable), tmp_path / "foreign"
    assert foreign._result(bad, "awq, b", python, tmp_path) == f"not written: ValueError: {tmp_path}: no {{'bits': 4}}"
    assert not (place / "x-bad-awq-b").exists()
    assert foreign._result(empty, "awq, b", python, tmp_path).startswith("refused: ")
    assert (place / "x-empty-awq-b").is_dir()


def test_single_checkpoints_are_asked_for_by_name(tmp_path, monkeypatch):
    """A program that has none of that name is left alone, and a name that none has is refused."""
    tried = []
    monkeypatch.setattr(foreign, "_tried", lambda writer, asked, folder: tried.append((writer.name, asked)) or [])

    def asked(*words):
        tried.clear()
        return CliRunner().invoke(foreign.main, [*words, "--folder", str(tmp_path)]).exit_code, list(tried)

    assert asked("--checkpoint", "awq") == (0, [("GPTQModel", ["awq"]), ("AutoAWQ", ["awq"])])
    assert asked("AutoAWQ", "--checkpoint", "gptq, 3 bits") == (0, [])
    assert asked("llama.cpp") == (0, [("llama.cpp", ["gguf, Q4_0"])])
    assert asked("--checkpoint", "awk") == (2, [])


class Counting:
    """After token t comes t + 1, whose logit leads by `lead`, and after that t + 2."""

    vocabulary = 200

    def __init__(self, leads: dict[int, float]):
        self.leads = leads  # by the length of the text

    def tokenizer(self, text: str) -> dict:
        return {"input_ids": [len(text)]}

    def logits(self, known: list[int]) -> torch.Tensor:
        logits = torch.zeros(self.vocabulary)
        logits[known[-1] + 1], logits[known[-1] + 2] = 9.0, 9.0 - self.leads.get(known[0], 1.0)
        return logits


def test_what_another_program_writes_is_compared_after_every_prompt():
    """Where it parts, it is told how far behind its token is here, and the prompt with the largest lead decides."""
    lengths = [len(prompt) for prompt in PROMPTS]
    model = Counting({lengths[0]: 0.25, lengths[1]: 3.0})
    theirs = [[length + 1 + step for step in range(COUNT)] for length in lengths]
    assert tell(compare(model, theirs)) == f"same tokens after all {len(PROMPTS)} prompts"
    theirs[0][5] += 1
    found = compare(model, theirs)
    assert found[0] == Compared(5, 0.25, 0.25) and found[1] == Compared(COUNT, 3.0, None)
    assert tell(found) == f"same tokens; 1 of {len(PROMPTS)} prompts part where theirs is behind here by 0.25"
    theirs[1][2] = 0
    assert tell(compare(model, theirs)) == (
        f"the first 2 of {COUNT} tokens are the same; 2 of {len(PROMPTS)} prompts part where theirs is behind here by "
        "0.25 and 9.00"
    )
