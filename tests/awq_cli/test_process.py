"""The command as its own process: what it imports, what else is printed, how it ends when it is ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.awq_cli.conftest import CALIBRATION, SLOW

SCRIPT = Path(__file__).parents[2] / "run_awq.py"


def start(folder: Path, *arguments, python: tuple[str, ...] = (), **streams) -> subprocess.Popen:
    environment = {**os.environ, "AWQ_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    environment.pop("MKL_CBWR", None)  # set for the command in this process; that in its own sets it by itself
    command = [sys.executable, *python, SCRIPT, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, encoding="utf-8", **pipes)


def unexpected(err: str) -> list[str]:
    return [line for line in err.splitlines() if not line.startswith(SLOW)]


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    def helped(*python: str) -> tuple[float, str, str]:
        began = time.perf_counter()
        process = start(tmp_path, "--help", python=python)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        return time.perf_counter() - began, out, err

    _, out, imported = helped("-X", "importtime")
    assert "--flash_attention" in out
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in imported.splitlines()}
    assert "click" in modules
    assert modules.isdisjoint({"torch", "numpy", "transformers", "datasets", "safetensors", "rich"})
    assert min(helped()[0] for _ in range(3)) < 1  # seconds; the best of three, as other processes run too
    assert all(len(line) <= 80 for line in out.splitlines())


def test_nothing_but_the_result_is_printed(tmp_path, model, text_file):
    """No warning, progress bar or log line of a library, whatever it is that they want to say."""
    shared = ("--model_name", model, "--w_bit", "3")
    process = start(tmp_path, "--task", "quantize", *shared, "--calib_data", text_file, *CALIBRATION)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == "note: group size 64: the largest of 128, 64, 32 that divides every layer\n"
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:9]] == ["layer", *names] and all(len(line) <= 80 for line in lines[:9])
    summary = [line for line in lines[9:] if not line.startswith("AWQ was worse")]
    assert len(summary) == 6 and summary[1].startswith("tiny: 0.3 MB in bfloat16 -> ")
    assert summary[-3:] == [
        f"scales saved in {tmp_path}/cache/tiny-w3-g64.pt",
        "saved in quantized_models/tiny-w3-g64-awq-gptq; to run it:",
        f"  python {SCRIPT} --task decode --checkpoint quantized_models/tiny-w3-g64-awq-gptq",
    ]
    process = start(tmp_path, "--task", "decode", *shared, "--prompt", "the value", "--max_new_tokens", "3")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and unexpected(err) == []
    assert out.startswith(f"{'*' * 40}\nprompt: the value\nresponse: ")


def test_a_mistake_is_one_line(tmp_path):
    process = start(tmp_path, "--task", "decode", "--w_bit", "2")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "error: Invalid value for '--w_bit': '2' is not one of '3', '4'.\n"


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    for task in ("decode", "quantize"):
        gone.mkdir(exist_ok=True)
        process = start(gone, "--task", task, preexec_fn=gone.rmdir)
        out, err = process.communicate(timeout=60)
        said = "error: the directory that this is called in is not there (No such file or directory); go to one\n"
        assert (process.returncode, out, err) == (2, "", said)


def test_an_interrupt_in_the_first_block_leaves_nothing(tmp_path, model, text_file):
    """The half-made checkpoint and the folders made for it and for the scales are gone."""
    interrupts_itself = """
import os, signal, sys
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from awq_cli.main import main
from quantization.work import Work
Work._solve = lambda *_: os.kill(os.getpid(), signal.SIGINT)
main()
"""
    options = ("--task", "quantize", "--model_name", model, "--calib_data", text_file, *CALIBRATION)
    # as on a terminal: a job in the background is started with interrupts ignored, and so is all that it starts
    heeded = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(tmp_path, *options, python=("-c", interrupts_itself), **heeded)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted" and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("solver", "counts"), [("rtn", ("1", "3")), ("gptq", ("1", "2", "3"))])
def test_any_number_of_threads_makes_the_same_bytes(tmp_path, make_model, text_file, solver, counts):
    """Of a model large enough for libraries to share its sums out."""
    model = make_model(tmp_path / "wider", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    options = ("--task", "quantize", "--model_name", model, "--w_bit", "3", "--lm_head", "--solver", solver)
    text = ("--calib_data", text_file, "--n_samples", "4", "--seqlen", "512", "--awq", "run")
    files = ("--output", "made", "--scales", "found.pt")
    for threads in counts:
        (tmp_path / threads).mkdir()
        process = start(tmp_path / threads, *options, *text, *files, "--num_torch_threads", threads)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    for name in ("made/model.safetensors", "found.pt"):
        first, *others = ((tmp_path / threads / name).read_bytes() for threads in counts)
        assert all(other == first for other in others), name


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="no such link on this system")
def test_json_may_go_to_a_pipe(tmp_path, rounded):
    options = ("--checkpoint", rounded, "--prompt", "the value", "--max_new_tokens", "2", "--json", "/dev/stdout")
    process = start(tmp_path, "--task", "decode", *options)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and unexpected(err) == []
    answers, begin, rest = out.partition('{\n  "task": "decode",\n')
    result, end, table = rest.partition("\n}\n")
    assert json.loads(begin + result + end)["responses"][0]["response"] in answers and "tokens" in table
    assert Path("/dev/stdout").is_symlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_the_shell_closed(tmp_path, closed):
    number = {"stdout": 1, "stderr": 2}[closed]
    command = f'exec "$0" "$@" {number}>&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, SCRIPT, "--task", "decode", "--checkpoint", "nowhere"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere is not a checkpoint") == (closed == "stdout")


def test_a_conversation_where_the_end_of_children_is_not_told(tmp_path):
    """A parent that ignores SIGCHLD hands that on to whom it starts."""
    code = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from engine.templates import Renderer, render
class Tokenizer:
    chat_template = "{{ messages[0]['content'] }}"
    def apply_chat_template(self, messages, **how):
        return messages[0]["content"] + "!"
asked = [{"role": "user", "content": "hi"}]
print(render(Tokenizer(), asked))
renderer = Renderer(Tokenizer())
print(renderer(asked))
renderer.close()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("hi!\nhi!\n", "")
