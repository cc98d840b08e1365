"""Decoding, timing and scoring from the command line: figures, fields and what is shown."""

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from awq_cli.tasks.decode import PROMPTS
from qlinear.backends.cpu import native
from qlinear.backends.cpu.decoder import CpuDecoder

PROMPT = "the value of this"  # four words, so five tokens


def float_perplexity(model, tokenizer, text: str, window: int, n_windows: int) -> float:
    """exp of the mean negative log-likelihood of all tokens but the first of each window, in float64.

    The tokenizer puts `<s>` before the text.
    """
    ids = tokenizer(text)["input_ids"]
    total, count = 0.0, 0
    for start in range(0, n_windows * window, window):
        tokens = torch.tensor(ids[start : start + window])
        with torch.no_grad():
            logits = model(tokens.unsqueeze(0)).logits[0].double()
        for position in range(window - 1):
            row = logits[position]
            total -= (row[tokens[position + 1]] - row.exp().sum().log()).item()
            count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("precision", ["bf16", "w4abf16"])
def test_perplexity_is_that_of_the_logits(run, model, rounded, tokenizer, text_file, precision):
    window, n_windows = 300, 3  # more than one chunk of rows in a window
    if precision == "bf16":
        which, name = ("--model_name", model, "--precision", "bf16", "--no_flash_attention"), "tiny"
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        tolerance = 1e-5
    else:
        which, name = ("--checkpoint", rounded), "made"
        reference = AutoModelForCausalLM.from_pretrained(rounded, dtype=torch.bfloat16)
        tolerance = 1e-2  # transformers rounds the dequantized weights to bfloat16, the command does not
    sizes = ("--window", window, "--n_windows", n_windows)
    scored = run.result("--task", "perplexity", *which, "--dataset", text_file, *sizes)
    expected = float_perplexity(reference, tokenizer, text_file.read_text(), window, n_windows)
    assert scored["perplexity"] == pytest.approx(expected, rel=tolerance)
    assert scored["seconds"] > 0
    assert {key: scored[key] for key in scored if key not in ("perplexity", "seconds")} == {
        "task": "perplexity",
        "model": name,
        "target": "cpu",
        "backend": scored["backend"],
        "notes": scored["notes"],  # empty, or that the native kernels are not built
        "precision": precision,
        "kv_bits": 16,
        "head_bits": 16,
        "kv_bytes": scored["kv_bytes"],  # of the whole stack's cache
        "flash_attention": precision == "w4abf16",  # the default
        "checkpoint": None if precision == "bf16" else str(rounded),
        "window": window,
        "n_windows": n_windows,
        "tokens": n_windows * (window - 1),
        "dataset": "prose.txt",
        "bos": True,
    }
    assert scored["backend"].startswith("cpu/")


def test_perplexity_scores_every_whole_window(run, rounded, tokenizer, text_file, prose):
    count = len(tokenizer(prose, add_special_tokens=False)["input_ids"])
    scored = run.result("--task", "perplexity", "--checkpoint", rounded, "--dataset", text_file, "--window", 500)
    assert scored["n_windows"] == count // 500
    assert scored["tokens"] == count // 500 * 499


def test_decode_answers_the_original_prompts_in_its_layout(run, rounded):
    outcome = run("--task", "decode", "--checkpoint", rounded, "--json", "result.json")
    result = json.loads((run.folder / "result.json").read_text())
    assert {"task", "target", "backend", "responses"} <= result.keys()
    assert [row["prompt"] for row in result["responses"]] == list(PROMPTS) and len(PROMPTS) == 10
    layout = ""
    for row in result["responses"]:
        assert {"prompt", "response", "new_tokens", "ttft_ms", "ms_per_token", "ended"} <= row.keys()
        assert 1 <= row["new_tokens"] <= 11 and row["ttft_ms"] > 0
        assert row["ended"] == ("length" if row["new_tokens"] == 11 else "end")
        assert row["new_tokens"] == 1 or row["ms_per_token"] > 0
        layout += f"{'*' * 40}\nprompt: {row['prompt']}\nresponse: {row['prompt']}{row['response']}\n"
    assert outcome.out.startswith(layout)
    table = outcome.out.removeprefix(layout).splitlines()
    assert len(table) == 2 + 2 + 10  # a blank line and a heading, two lines of column names
    assert all(len(line) <= 80 for line in table[2:])
    for row, line in zip(result["responses"], table[4:], strict=True):
        assert line.startswith(row["prompt"][:30]) and f"{row['ttft_ms']:,.1f}" in line.split()


def test_decode_writes_what_transformers_writes(run, model, tokenizer):
    options = ("--precision", "bf16", "--no_flash_attention", "--model_name", model, "--max_new_tokens", 8)
    options += ("--prompt", PROMPT)
    answer = run.result("--task", "decode", *options)["responses"][0]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tokens = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    whole = reference.generate(tokens, max_new_tokens=8, do_sample=False)[0]
    written = whole[tokens.shape[1] :]
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) + answer["response"] == tokenizer.decode(
        whole, skip_special_tokens=True
    )
    assert (answer["prompt_tokens"], answer["new_tokens"]) == (5, len(written))


@pytest.mark.parametrize("flash", ["--flash_attention", "--no_flash_attention"])
def test_a_prompt_is_answered_alike_alone_and_after_others(run, rounded, flash):
    """Nothing of one prompt is left for the next; a prompt given twice has one answer."""
    prompts = (PROMPT, "a class of objects and the names of all of its attributes", PROMPT)
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    answers = run.result("--task", "decode", "--checkpoint", rounded, flash, *given, "--max_new_tokens", 6)
    first, _, third = (row["response"] for row in answers["responses"])
    assert first == third


def test_prompts_are_shown_as_typed(run, rounded):
    """Neither emoji codes nor markup nor line ends of a prompt mean anything to the terminal; long ones are cut."""
    long = "words " * 30
    prompts = ("[bold] :smile: [/nothing]", "two\nlines", long)
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    outcome = run("--task", "decode", "--checkpoint", rounded, *given, "--max_new_tokens", 2)
    assert outcome.code == 0 and "prompt: [bold] :smile: [/nothing]\n" in outcome.out
    table = outcome.out.splitlines()[-3:]
    assert table[0].startswith("[bold] :smile: [/nothing] ") and table[1].startswith("two lines ")
    assert "…" in table[2] and len(table[2].split("…")[1].split()) == 5  # every figure is there


def test_one_new_token_has_no_time_per_token(run, rounded):
    outcome = run("--task", "decode", "--checkpoint", rounded, "--prompt", PROMPT, "--max_new_tokens", 1, "--json", "r")
    row = json.loads((run.folder / "r").read_text())["responses"][0]
    assert row["new_tokens"] == 1 and row["ms_per_token"] is None
    assert outcome.out.splitlines()[-1].split()[-2:] == ["-", "-"]


def test_chat_uses_the_models_template_and_adds_nothing_to_it(run, rounded, tokenizer, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}value {{ m['content'] }} {% endfor %}"
    template += "{% if add_generation_prompt %}this{% endif %}"
    copy = tmp_path / "chatty"
    copy.mkdir()
    for path in rounded.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tokenizer = type(tokenizer).from_pretrained(copy)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(copy)
    shared = ("--task", "decode", "--max_new_tokens", 5)
    chat = run.result(*shared, "--checkpoint", copy, "--chat", "--prompt", "of the")["responses"][0]
    plain = run.result(*shared, "--checkpoint", rounded, "--prompt", "value of the this")["responses"][0]
    assert chat["prompt"] == "of the" and chat["prompt_tokens"] == plain["prompt_tokens"] == 5
    assert " " + chat["response"] == plain["response"]  # what goes on with a text has the space before it


FIGURES = ["prompt_tokens", "new_tokens", "ttft_ms", "prefill_tok_s", "ms_per_token", "decode_tok_s"]


@pytest.mark.parametrize("target", ["aie", "aie_emu"])
def test_an_npu_that_is_not_there_is_emulated_and_called_so(run, rounded, target, text_file):
    shared = ("--checkpoint", rounded, "--target", target)
    outcome = run("--task", "decode", *shared, "--prompt", PROMPT, "--max_new_tokens", 2, "--json", "result.json")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["target"] == target and "emulated" in result["backend"]
    assert f"{rounded} on {result['backend']}, flash attention" in outcome.out.splitlines()
    assert [line.split(":")[1] for line in outcome.notes] == ([" --target aie"] if target == "aie" else [])
    scored = run.result("--task", "perplexity", *shared, "--dataset", text_file, "--window", 64, "--n_windows", 2)
    on_cpu = ("--checkpoint", rounded, "--dataset", text_file, "--window", 64, "--n_windows", 2)
    # The array's weights are rounded to bfloat16 once they are dequantized.
    assert scored["perplexity"] == pytest.approx(run.result("--task", "perplexity", *on_cpu)["perplexity"], rel=0.01)


def test_benchmark_rows_in_json_csv_and_table(run, rounded):
    files = ("--json", "result.json", "--csv", "rows.csv")
    outcome = run(
        "--task", "benchmark", "--checkpoint", rounded, "--max_new_tokens", 3, "--num_torch_threads", 1, *files
    )
    result = json.loads((run.folder / "result.json").read_text())
    assert {
        "task",
        "target",
        "backend",
        "precision",
        "threads",
        "rows",
        "peak_rss_bytes",
        "model_bytes",
    } <= result.keys()
    assert (result["task"], result["precision"], result["threads"]) == ("benchmark", "w4abf16", 1)
    assert result["model_bytes"] == (rounded / "model.safetensors").stat().st_size
    assert [row["prompt_tokens"] for row in result["rows"]] == [4, 8, 16, 32, 64, 128, 256]
    for row in result["rows"]:
        assert row.pop("modelled") is None  # it was measured
        assert list(row) == FIGURES and row["new_tokens"] == 3
        assert row["prefill_tok_s"] == pytest.approx(row["prompt_tokens"] / row["ttft_ms"] * 1e3)
        assert row["decode_tok_s"] == pytest.approx(1e3 / row["ms_per_token"])
    with (run.folder / "rows.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == FIGURES and [[float(cell) for cell in row] for row in rows] == [
        list(row.values()) for row in result["rows"]
    ]
    table = outcome.out.splitlines()[3:11]
    assert [line[:6] for line in table[1:]] == [f"{length:6}" for length in (4, 8, 16, 32, 64, 128, 256)]
    for row, line in zip(result["rows"], table[1:], strict=True):
        figures = (row["ttft_ms"], row["prefill_tok_s"], row["ms_per_token"], row["decode_tok_s"])
        assert line.split()[1:] == [f"{figure:,.1f}" for figure in figures] and len(line) <= 80
    assert outcome.out.splitlines()[-1].startswith("1 thread, weights ")
    assert outcome.notes == []


def test_lengths_that_do_not_fit_are_left_out_and_told(run, rounded, text_file, tokenizer, prose):
    long = ("--task", "benchmark_long", "--checkpoint", rounded, "--max_new_tokens", 2)
    outcome = run(*long, "--json", "result.json")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["task"] == "benchmark_long" and [row["prompt_tokens"] for row in result["rows"]] == [512]
    assert len(outcome.notes) == 1 and outcome.notes[0].startswith(
        "note: left out prompt lengths 1024, 1536, 2048, 3000, 4096: the model's context has room for 598 prompt "
    )


def test_the_float_model_is_timed_too(run, model):
    result = run.result("--task", "benchmark", "--model_name", model, "--precision", "bf16", "--max_new_tokens", 2)
    assert (result["model"], result["precision"], result["checkpoint"]) == ("tiny", "bf16", None)
    assert result["model_bytes"] == 2 * sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())


def test_drawing_tokens_is_repeatable_and_differs_from_the_likeliest(run, rounded):
    decode = ("--task", "decode", "--checkpoint", rounded, "--prompt", PROMPT, "--max_new_tokens", 30)

    def drawn(*arguments) -> str:
        return run.result(*decode, *arguments)["responses"][0]["response"]

    greedy = drawn()
    hot = ("--temperature", 5.0, "--seed", 1)
    assert drawn(*hot) == drawn(*hot) != greedy
    assert drawn(*hot[:3], 2) != drawn(*hot)
    assert drawn(*hot, "--top_k", 1) == greedy
    assert drawn(*hot, "--top_p", 1e-6) == greedy


@pytest.fixture
def steps(monkeypatch):
    """How many texts each call of a decoder reads."""
    found, read = [], CpuDecoder.read

    def counted(self, readings, out):
        found.append(len(readings))
        read(self, readings, out)

    monkeypatch.setattr(CpuDecoder, "read", counted)
    return found


FIGURES_OF_TIME = ("ttft_ms", "ms_per_token")


@pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
def test_prompts_are_answered_at_once_with_the_tokens_that_each_has_alone(run, rounded, steps):
    """Drawn ones too, and those that a stop text ends; more of them than there are slots."""
    prompts = [f"{PROMPT} {'a class of objects ' * number}" for number in range(10)]
    how = ("--task", "decode", "--checkpoint", rounded, "--temperature", 2, "--seed", 3, "--max_new_tokens", 24)
    alone = [run.result(*how, "--prompt", prompt)["responses"][0] for prompt in prompts]
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    steps.clear()
    together = run.result(*how, *given)["responses"]
    assert max(steps) == 8 and len(steps) < 24 * len(prompts) / 2
    for one, other in zip(alone, together, strict=True):
        assert list(one) == list(other) and all(other[name] > 0 for name in FIGURES_OF_TIME)
        assert {**one, **{name: other[name] for name in FIGURES_OF_TIME}} == other
    stop = alone[4]["response"].split()[5]
    stopped = run.result(*how, *given, "--stop", stop)["responses"]
    assert stopped[4]["ended"] == "stop" and stopped[4]["new_tokens"] < 24
    for one, other in zip(alone, stopped, strict=True):
        assert one["response"].startswith(other["response"]) and stop not in other["response"]


@pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
def test_whoever_reads_along_has_one_answer_after_the_other(run, rounded, steps, monkeypatch):
    terminal = SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("awq_cli.tasks.decode.sys", terminal)
    given = ("--task", "decode", "--checkpoint", rounded, "--prompt", "a", "--prompt", "b", "--max_new_tokens", 5)
    assert len(run.result(*given)["responses"]) == 2 and set(steps) == {1}
