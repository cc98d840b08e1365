"""However the command ends: one line, the exit status of other tools, and nothing lost that was asked for."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from awq_cli import main
from tests.awq_cli.conftest import CALIBRATION
from tests.awq_cli.test_process import SCRIPT, start

SLOW_BLOCKS = """
import os, sys, time
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from awq_cli.main import main
from checkpoints import journal
from quantization.work import Work
journal.WORTH = 0
solve = Work._solve
def slow(self, unit):
    if unit.index == 1:
        print("second", flush=True)
        time.sleep(60)
    return solve(self, unit)
Work._solve = slow
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_as_an_interrupt_does(run, model, text_file, number):
    """What is left is told and kept, and the exit status is the signal's."""
    quantize = ("--task", "quantize", "--model_name", model, "--output", "made", "--calib_data", text_file)
    quantize += CALIBRATION
    heeded = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}
    process = start(run.folder, *quantize, python=("-c", SLOW_BLOCKS), **heeded)
    assert process.stdout.readline() == "second\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    note, last = err.splitlines()[-2:]
    assert note.startswith("note: stopped; 1 of 2 blocks are kept, and the same again with --resume ")
    assert last == "terminated"
    assert f"note: going on after {1} of 2 blocks" in run(*quantize, "--resume").notes


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path, rounded):
    """As `| head -1` does: nothing on standard error, the status of SIGPIPE, and the files that were asked for."""
    decode = ("--task", "decode", "--checkpoint", rounded, "--max_new_tokens", 2, "--json", "result.json")
    process = start(tmp_path, *decode)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (128 + signal.SIGPIPE, "")


def test_files_are_written_whatever_becomes_of_the_output(tmp_path, model):
    process = start(tmp_path, "--task", "quantize", "--model_name", model, "--awq", "none", "--json", "result.json")
    process.stdout.close()
    process.stderr.read()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert json.loads((tmp_path / "result.json").read_text())["task"] == "quantize"


def test_a_fault_of_ours_is_one_line_with_its_traceback_in_a_file(run, monkeypatch, tmp_path):
    monkeypatch.setattr(main, "build", lambda *_: {}["nobody\nforesaw this"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = run("--task", "decode")
    assert (outcome.code, outcome.out, len(outcome.notes)) == (1, "", 1)
    line = r"error: a fault of this program: KeyError: 'nobody\\nforesaw this'; its traceback is in (\S+)"
    file = Path(re.fullmatch(line, outcome.notes[0])[1])
    assert file.parent == tmp_path and "Traceback" in file.read_text() and "--task decode" in file.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert run("--task", "decode").notes[0].endswith("; its traceback could not be written")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device on this system")
def test_a_full_disk_is_one_line(run, model, rounded, text_file):
    answer = ("--task", "decode", "--checkpoint", rounded, "--prompt", "the value", "--max_new_tokens", 1)
    outcome = run(*answer, "--json", "/dev/full")
    assert outcome.code == 2 and outcome.notes == ["error: --json /dev/full cannot be written: No space left on device"]
    assert Path("/dev/full").is_char_device()
    quantize = ("--task", "quantize", "--model_name", model, "--calib_data", text_file, *CALIBRATION, "--awq", "run")
    outcome = run(*quantize, "--output", "made", "--scales", "/dev/full")
    assert outcome.code == 2 and outcome.notes[-1].startswith("error: scales cannot be saved in /dev/full: ")
    assert Path("/dev/full").is_char_device() and not (run.folder / "made").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device on this system")
def test_an_output_without_room_is_one_line(tmp_path, model):
    """Nothing is lost that was written elsewhere."""
    quantize = ("--task", "quantize", "--model_name", model, "--awq", "none", "--output", "q", "--json", "result.json")
    with open("/dev/full", "w") as full:
        process = start(tmp_path, *quantize, stdout=full)
    said = process.stderr.read().splitlines()
    assert process.wait(timeout=60) == 2
    assert said[-1] == "error: cannot write: No space left on device; make room, or write elsewhere"
    assert all(line.startswith("note: ") for line in said[:-1])
    assert json.loads((tmp_path / "result.json").read_text())["task"] == "quantize"
    assert (tmp_path / "q" / "config.json").is_file()


def test_what_a_file_says_does_not_steer_the_terminal(run, model, text_file, tmp_path):
    torch.save({"scale": [], "clip": [], "meta": {"fingerprint": "a\x1b[31m\nb"}}, tmp_path / "s.pt")
    quantize = ("--task", "quantize", "--model_name", model, "--awq", "load", "--scales", tmp_path / "s.pt")
    error = run(*quantize).error
    assert "was made for the model of fingerprint a\\x1b[31m b, not for" in error


def test_a_text_without_end_is_not_read(run, model, rounded, monkeypatch):
    monkeypatch.setattr("quantization.texts.files.MOST_BYTES", 10**6)
    endless = ("/dev/zero has more than 0.001 GB of text, which is not read; give a part of it",)
    score = run("--task", "perplexity", "--checkpoint", rounded, "--dataset", "/dev/zero").error
    calibrate = run("--task", "quantize", "--model_name", model, "--calib_data", "/dev/zero", *CALIBRATION).error
    assert (score, calibrate) == (f"--dataset {endless[0]}", f"--calib_data {endless[0]}")


def test_names_in_a_scales_file_are_texts(run, model):
    """Forty times `b = [b, b]` is a name of 2**40 words in two kilobytes."""
    name = ["x"]
    for _ in range(40):
        name = [name, name]
    file = {"scale": [(name, ("y",), torch.ones(4))], "clip": []}
    torch.save(file, run.folder / "nested.pt")
    began = time.monotonic()
    error = run("--task", "quantize", "--model_name", model, "--awq", "load", "--scales", "nested.pt").error
    assert error == "scales file nested.pt is not an AWQ result file (entries 'scale' and 'clip')"
    assert time.monotonic() - began < 20


def test_ignored_signals_stay_ignored(tmp_path):
    """`nohup` and background jobs have asked for it."""
    code = """
import os, signal
from awq_cli.ending import one_line
with one_line():
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
"""
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **ignored)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
