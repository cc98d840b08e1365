"""Texts and prompts on their way in: tokens without a row, bytes that are no text, the beginning of a text."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.awq_cli.conftest import CALIBRATION

ROWS = 300  # of the embedding; the tokenizer has 512 tokens


@pytest.fixture(scope="module")
def narrow(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("narrow") / "narrow", vocab_size=ROWS)


@pytest.fixture(scope="module")
def rare(tokenizer) -> tuple[int, str]:
    """A token that the narrow model has no row for, and its word."""
    return ROWS + 7, tokenizer.convert_ids_to_tokens(ROWS + 7)


@pytest.mark.parametrize(
    "task",
    [
        ("decode", "--precision", "bf16", "--prompt", "the {} of"),
        ("perplexity", "--precision", "bf16", "--dataset", "text", "--window", "8"),
        ("evaluate", "--precision", "bf16", "--tasks", "perplexity", "--dataset", "text", "--window", "8"),
        ("evaluate", "--precision", "bf16", "--tasks", "arc_challenge", "--eval_data", "."),
        ("benchmark", "--precision", "bf16", "--dataset", "text"),
        ("quantize", "--calib_data", "text", *CALIBRATION),
    ],
    ids=lambda task: " ".join(task[:4]),
)
def test_a_token_that_the_model_has_no_row_for(run, narrow, rare, task):
    token, word = rare
    (run.folder / "text").write_text(f"the value of this {word} the value " * 40)
    rows = {"query": f"Question: the {word}", "choices": ["the value", "a"], "gold": 0}
    (run.folder / "arc_challenge.jsonl").write_text(json.dumps(rows))
    before = run.left()
    error = run("--task", *(part.format(word) for part in task), "--model_name", narrow).error
    assert error == (
        f"token {token} ({word!r}) of the tokenizer has no row in the model's embedding of {ROWS}; give the model its "
        f"own tokenizer"
    )
    assert run.left() == before


def test_a_prompt_of_bytes_that_are_no_text(run, model):
    decode = ("--task", "decode", "--precision", "bf16", "--model_name", model, "--prompt")
    message = "--prompt is not Unicode text: byte 0xe9 at character 4; mend it"
    assert run(*decode, "caf\udce9").error == message
    assert run(*decode, "the value", "--prompt", "caf\udce9").error == message
    assert run(*decode, "@caf\udce9").error.startswith("--prompt @caf")


def test_standard_input_of_bytes_that_are_no_text(run, model, tmp_path, monkeypatch):
    (tmp_path / "prompt").write_bytes(b"caf\xe9 of")
    monkeypatch.setattr("sys.stdin", open(tmp_path / "prompt", encoding="utf-8"))
    asked = ("--task", "decode", "--precision", "bf16", "--model_name", model, "--prompt", "-")
    error = run(*asked).error
    assert error == "--prompt - is not UTF-8 text: invalid continuation byte at byte 3"
    monkeypatch.setattr("sys.stdin", None)  # closed, as some that start programs do
    assert run(*asked).error == "--prompt -: there is no standard input"


def test_a_chat_template_that_fails(run, model, make_model, tmp_path):
    folder = make_model(tmp_path / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    decode = ("--task", "decode", "--precision", "bf16", "--model_name", folder, "--prompt", "the", "--chat")
    for template, what in (
        ("{{ raise_exception('no users') }}", "cannot be used: TemplateError: no users"),
        ("{{ 'a' * 10**10 }}", "takes more than 1 GiB of memory"),
    ):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        assert run(*decode).error == f"--chat: the model's chat template {what}; mend it, or use --raw"


def losses(model, ids: list[int], window: int) -> list[float]:
    """Of all tokens but the first of each whole window, in float64."""
    found = []
    for start in range(0, len(ids) - window + 1, window):
        tokens = torch.tensor(ids[start : start + window])
        with torch.no_grad():
            rows = model(tokens.unsqueeze(0)).logits[0].double().log_softmax(-1)
        found += [-rows[at, tokens[at + 1]].item() for at in range(window - 1)]
    return found


@pytest.fixture(scope="module")
def plain_model(make_model, tmp_path_factory):
    """Its tokenizer puts nothing before a text."""
    folder = make_model(tmp_path_factory.mktemp("plain") / "plain")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("option", [(), ("--bos",), ("--no_bos",), ("--no-bos",)])
@pytest.mark.parametrize("adds", [True, False])
def test_the_beginning_of_a_text_stands_there_once(run, model, plain_model, text_file, option, adds):
    """By default as the tokenizer has it; the result says how it was, and the float model reads the same."""
    model = model if adds else plain_model
    plain = AutoTokenizer.from_pretrained(model)(text_file.read_text(), add_special_tokens=False)["input_ids"]
    has = adds if not option else option == ("--bos",)
    ids = [1, *plain] if has else plain
    which = ("--model_name", model, "--precision", "bf16", "--dataset", text_file, "--window", 40, "--n_windows", 2)
    which += ("--no_flash_attention",)  # in the order of sums that transformers has
    found = run.result("--task", "perplexity", *which, *option)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    each = losses(reference, ids[:80], 40)
    assert found["perplexity"] == pytest.approx(math.exp(sum(each) / len(each)), rel=1e-5)
    assert found["bos"] is has
    scored = run.result("--task", "evaluate", "--tasks", "perplexity", *which, *option)
    assert scored["scores"][0]["value"] == pytest.approx(found["perplexity"], rel=1e-5) and scored["bos"] is has


@pytest.mark.parametrize(("option", "has"), [((), True), (("--no_bos",), False)])
@pytest.mark.parametrize("source", ["text", "self"])
def test_calibration_says_how_its_text_begins(run, model, text_file, option, has, source):
    text = ("--calib_data", text_file if source == "text" else "self")
    solver = ("--awq", "none", "--solver", "gptq")
    found = run.result("--task", "quantize", "--model_name", model, *solver, *text, *CALIBRATION, *option)
    assert found["calibration"]["bos"] is has


def test_no_token_for_the_beginning_of_a_text(run, make_model, text_file, tmp_path):
    folder = make_model(tmp_path / "endless")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    score = ("--task", "perplexity", "--model_name", folder, "--precision", "bf16", "--dataset", text_file)
    assert run(*score, "--window", "40", "--bos").error == (
        "--bos: this model's tokenizer has no token for the beginning of a text; leave --bos out"
    )
    assert run.result(*score, "--window", "40", "--n_windows", "1")["bos"] is False


def test_where_it_means_nothing(run):
    idle = {
        ("quantize", "--awq", "none"): "with --awq none and --solver rtn or hqq",
        ("evaluate", "--tasks", "winogrande"): "without perplexity among --tasks",
    }
    for (task, *options), when in idle.items():
        assert run("--task", task, *options, "--bos").error == f"--bos means nothing {when}; leave it out"
    assert run("--task", "decode", "--no_bos").error == "--no_bos means nothing for --task decode; leave it out"
