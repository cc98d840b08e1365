"""What the terminal shows and when: answers as they are written, tables of any width, help, and quiet."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run_awq.py"
PROMPT = "the value of this"


class Terminal:
    """The command on a terminal of its own; `at` tells when each part of its output came."""

    def __init__(self, folder: Path, *arguments, columns: int = 80):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, SCRIPT, *map(str, arguments)]
        streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams)
        os.close(theirs)
        self.at: list[tuple[float, str]] = []
        self._read(ours)

    def _read(self, descriptor: int) -> None:
        while True:
            try:
                part = os.read(descriptor, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            self.at.append((time.monotonic(), part.decode("utf-8")))
        os.close(descriptor)
        self.process.wait(timeout=60)

    @property
    def text(self) -> str:
        return "".join(part for _, part in self.at).replace("\r\n", "\n")


def test_an_answer_is_shown_as_it_is_written(run, rounded, tmp_path):
    """On a terminal piece by piece; the same text as where the output is no terminal, where it comes at once."""
    decode = ("--task", "decode", "--checkpoint", rounded, "--prompt", PROMPT, "--max_new_tokens", 40)
    decode += ("--no_flash_attention",)  # which a reader could not keep up with
    shown = Terminal(tmp_path, *decode)
    assert shown.process.returncode == 0
    head, _, answer = shown.text.partition("response: ")
    assert head == f"{'*' * 40}\nprompt: {PROMPT}\n"
    piped = run(*decode).out
    assert answer.partition("\n\n")[0] == piped.partition("response: ")[2].partition("\n\n")[0]
    begins = len(head) + len("response: ")
    ends = begins + len(answer.partition("\n\n")[0])
    parts, length = 0, 0
    for _, part in shown.at:
        parts += begins < length + len(part) and length < ends
        length += len(part.replace("\r\n", "\n"))
    assert parts > 5


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_line_of_a_table_is_longer_than_the_terminal(run, model, rounded, text_file, columns):
    """Headers wrap, names give way, figures stay whole."""
    run = replace(run, columns=columns)
    searched = ("--calib_data", text_file, "--n_samples", "4", "--seqlen", "32")
    made = run("--task", "quantize", "--model_name", model, *searched)
    timed = run("--task", "benchmark", "--checkpoint", rounded, "--max_new_tokens", 2)
    answered = run("--task", "decode", "--checkpoint", rounded, "--prompt", PROMPT * 9, "--max_new_tokens", 2)
    for outcome, heading in ((made, "layer"), (timed, "prompt"), (answered, "prompt")):
        assert outcome.code == 0
        lines = outcome.out.splitlines()
        first = next(index for index, line in enumerate(lines) if heading in line.split()[:1] or "prompt " in line[:9])
        table = [line for line in lines[first:] if re.search(r"\d\s*$", line)]
        assert table and all(len(line) <= columns for line in table), table
        assert "…" not in "".join(re.findall(r"[\d.,…]+", line)[-1] for line in table)


def test_the_table_of_losses_shows_what_was_saved(run, model, text_file):
    """What AWQ alone would lose stands beside what the solver's codes in the checkpoint do."""
    searched = ("--calib_data", text_file, "--n_samples", "16", "--seqlen", "64")
    outcome = run("--task", "quantize", "--model_name", model, *searched, "--json", "result.json")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["loss", "with", "as", "saved", "/", "AWQ's"]
    assert lines[1].split() == ["layer", "rounded", "AWQ", "saved", "rounded", "ratio"]
    layers = json.loads((run.folder / "result.json").read_text())["layers"]
    downs = [layer for layer in layers if layer["name"].endswith("mlp.down_proj")]
    (shown,) = (line.split() for line in lines if line.startswith("mlp.down_proj"))
    for column, field in ((1, "loss_rtn"), (2, "loss_awq"), (3, "loss_solver")):
        mean = (downs[0][field] * downs[1][field]) ** 0.5
        assert float(shown[column]) == pytest.approx(mean, rel=0.01)
    assert float(shown[4]) == pytest.approx(float(shown[3]) / float(shown[1]), abs=0.01)
    assert float(shown[3]) < 0.9 * float(shown[2])


def test_the_next_command_is_there_to_be_copied(run, model):
    outcome = run("--task", "quantize", "--model_name", model, "--awq", "none", "--output", "its place")
    program, *arguments = outcome.out.splitlines()[-1].strip().split("--task", 1)
    assert program == "python run_awq.py " and arguments == [" decode --checkpoint 'its place'"]


def test_quiet_says_no_more_than_the_result(run, model):
    outcome = run("--task", "quantize", "--model_name", model, "--awq", "none", "--quiet")
    assert outcome.code == 0 and outcome.notes == [] and "saved in " in outcome.out
    assert run("--task", "quantize", "--model_name", model, "--awq", "none", "--quiet").error.startswith(
        "quantized_models/tiny-w4-g64-rtn exists already; give --overwrite"
    )


def test_the_version(run):
    outcome = run("--version")
    assert outcome.code == 0 and re.fullmatch(r"run_awq \d+\.\d+\.\d+\n", outcome.out)


def test_options_may_be_spelled_with_dashes(run, model):
    dashed = ("--model-name", model, "--awq", "none", "--group-size", "32", "--lm-head", "--lm_head-group_size", "64")
    made = run.result("--task", "quantize", *dashed)
    assert made["checkpoint"] == "quantized_models/tiny-w4-g32-rtn-lm_head" and made["layers"][-1]["group_size"] == 64
    assert run("--task", "decode", "--group-size", "48").error.startswith("Invalid value for '--group_size': '48' is ")
    assert run("--task", "decode", "--group-sise", "48").error.startswith("No such option")


def test_help_has_headings_in_the_order_of_work(run):
    out = run("--help").out
    headings = re.findall(r"^([A-Z]\w+):$", out, flags=re.MULTILINE)
    assert headings == ["Model", "Quantizing", "Running", "Serving", "Evaluating", "Output", "Help"]
    section = dict(zip(headings, re.split(r"^[A-Z]\w+:$", out, flags=re.MULTILINE)[1:], strict=True))
    assert "--solver [rtn|hqq|gptq|learned]" in section["Quantizing"] and "--prompt TEXT" in section["Running"]
    assert "--overwrite" in section["Output"] and "--tasks NAMES" in section["Evaluating"]


def test_prompts_from_a_file_and_from_standard_input(run, rounded, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    decode = ("--task", "decode", "--checkpoint", rounded, "--max_new_tokens", 4, "--prompt")
    typed = run.result(*decode, PROMPT)["responses"][0]["response"]
    from_file = run.result(*decode, f"@{tmp_path}/prompt.txt")["responses"][0]
    assert (from_file["prompt"], from_file["response"]) == (PROMPT, typed)
    monkeypatch.setattr("sys.stdin", open(tmp_path / "prompt.txt"))
    assert run.result(*decode, "-")["responses"][0]["response"] == typed
    assert run(*decode, "@lost.txt").error == "--prompt @lost.txt: no such file"
    (tmp_path / "prompt.txt").write_bytes(b"caf\xe9")
    assert "is not UTF-8 text" in run(*decode, f"@{tmp_path}/prompt.txt").error
