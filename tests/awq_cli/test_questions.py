"""Questions and answers at the edges: too long for the context, a token across the join, lines that are none."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from awq_cli.questions.asked import LanguageModel
from awq_cli.questions.files import read_rows
from engine.model import About, Model
from engine.whole import ModuleRunner
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import OptionError
from qlinear.progress import silent
from tests.tiny import tiny_model

CONTEXT = 64
ROWS = ("--task", "evaluate", "--tasks", "arc_challenge", "--precision", "bf16")


@pytest.fixture(scope="module")
def short(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("short") / "short", max_position_embeddings=CONTEXT)


def ask(folder, choices: list[str]):
    rows = {"query": "Question: what is the value of this", "choices": choices, "gold": 0}
    folder.mkdir(exist_ok=True)
    (folder / "arc_challenge.jsonl").write_text(json.dumps(rows), encoding="utf-8")
    return "--eval_data", folder


@pytest.mark.parametrize("flash", ["--flash_attention", "--no_flash_attention"])
def test_an_answer_longer_than_the_context(run, short, tmp_path, flash):
    options = (*ROWS, flash, "--model_name", short)
    assert run(*options, *ask(tmp_path / "data", ["the " * CONTEXT, "a name"])).code == 0
    answer = "' the the the the the the the the the the'"
    assert run(*options, *ask(tmp_path / "data", ["the " * CONTEXT + "the", "a name"])).error == (
        f"--tasks: an answer of {CONTEXT + 1} tokens, {answer} and so on, has no room in the model's context of "
        f"{CONTEXT}; leave its task out"
    )


def asked(tokenizer, limit: int = 256, **overrides) -> tuple[Model, object]:
    """A model, and how lm-eval's tasks ask it."""
    module = tiny_model("llama", tie_word_embeddings=False, max_position_embeddings=limit, **overrides)
    about = About(name="tiny", code="cpu/torch bf16", precision="bf16", model_bytes=1)
    model = Model(about, ModuleRunner(module, ReferenceBackend("cpu/torch"), False, quantized=False), tokenizer, silent)
    return model, LanguageModel(model, "answers", silent)


def likelihood(asked, context: str, answer: str) -> tuple[float, bool]:
    (found,) = asked.loglikelihood([SimpleNamespace(args=(context, answer))])
    return found


def expected(model: Model, context: list[int], answer: list[int]) -> float:
    """In float64, of one whole forward."""
    with torch.no_grad():
        rows = model.module(torch.tensor([context + answer])).logits[0].double()
    rows = (rows - rows.exp().sum(-1, keepdim=True).log())[len(context) - 1 :]
    return sum(rows[at, token].item() for at, token in enumerate(answer))


def letters(*merged: str) -> PreTrainedTokenizerFast:
    """A token a letter, from 3 on, and one for each of `merged`, made of a pair of what comes before it."""
    alphabet = ["<pad>", "<s>", "</s>", *"abcdefgh: 45"]
    pairs = [(one[:-1], one[-1]) for one in merged]
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_a_token_across_the_join_is_the_answers():
    tokenizer = letters(": ", ": 4")
    model, lm = asked(tokenizer)
    ids = tokenizer("ab: 4")["input_ids"]
    assert len(ids) == 3 and len(tokenizer("ab:")["input_ids"]) == 3
    assert likelihood(lm, "ab:", " 4")[0] == pytest.approx(expected(model, ids[:2], ids[2:]), abs=1e-4)
    ids = tokenizer("ab: 5")["input_ids"]  # the blank goes with the colon, as lm-eval has it
    assert len(ids) == 4
    assert likelihood(lm, "ab:", " 5")[0] == pytest.approx(expected(model, ids[:3], ids[3:]), abs=1e-4)


def test_one_token_in_all_follows_the_token_for_the_beginning():
    tokenizer = letters(": ", ": 4")
    model, lm = asked(tokenizer)
    (only,) = tokenizer(": 4")["input_ids"]
    assert likelihood(lm, ":", " 4")[0] == pytest.approx(expected(model, [1], [only]), abs=1e-4)


@pytest.mark.parametrize("length", [5, 15, 16, 17, 40])
def test_a_context_is_cut_at_its_left(length):
    """The last token of the answer is not read: one more than the context's length is looked at."""
    limit, answer = 16, "ab"
    model, lm = asked(letters(), limit)
    context = "cdefgh" * 10
    ids = [model.tokenizer(text)["input_ids"] for text in (context[:length], answer)]
    kept = ids[0][-(limit + 1 - len(answer)) :]
    assert likelihood(lm, context[:length], answer)[0] == pytest.approx(expected(model, kept, ids[1]), abs=1e-4)


def test_an_answer_as_long_as_the_context_keeps_one_token_before_it():
    limit = 16
    model, lm = asked(letters(), limit)
    answer = "abcdefgh" * 2
    ids = model.tokenizer(f"cd{answer}")["input_ids"]
    with torch.no_grad():
        rows = model.module(torch.tensor([ids[1:-1]])).logits[0].double().log_softmax(-1)
    total = sum(rows[at, token].item() for at, token in enumerate(ids[2:]))
    assert likelihood(lm, "cd", answer)[0] == pytest.approx(total, abs=1e-3)
    with pytest.raises(OptionError, match="^--tasks: an answer of 17 tokens, 'abcdefghabcdefgha' and so on, has no"):
        likelihood(lm, "cd", f"{answer}a")


def test_lines_end_where_lines_of_json_end(tmp_path):
    """Strings may hold characters that end a line elsewhere."""
    choices = ["one\u2028two", "three\u0085four", "five\u2029six\x1cseven"]
    rows = [{"query": f"Question: {number}\x0b?", "choices": choices, "gold": 1} for number in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "arc_challenge.jsonl").write_text("\r\n".join(lines) + "\n\n", encoding="utf-8")
    found = read_rows(tmp_path, "arc_challenge")
    assert [row["question"] for row in found] == ["0\x0b?", "1\x0b?"]
    assert [row["choices"]["text"] for row in found] == [choices, choices]


def broken(model, folder, factor: float):
    """A model whose logits are so many times as large."""
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    module.lm_head.weight.data *= factor
    module.to(torch.bfloat16).save_pretrained(folder)
    for path in model.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


NOT_FINITE = "the model's logits are not finite: its weights are damaged, or too large for bfloat16"


@pytest.mark.parametrize(
    "task",
    [
        ("perplexity", "--dataset", "text", "--window", "32"),
        ("evaluate", "--tasks", "perplexity", "--dataset", "text", "--window", "32"),
        ("evaluate", "--tasks", "arc_challenge", "--eval_data", "data"),
        ("decode", "--prompt", "the value"),
        ("decode", "--prompt", "the value", "--temperature", "0.7"),
        ("benchmark",),
    ],
    ids=lambda task: " ".join(task[:3]),
)
@pytest.mark.parametrize("flash", ["--flash_attention", "--no_flash_attention"])
def test_logits_that_are_not_finite(run, model, tmp_path, task, flash):
    infinite = broken(model, tmp_path / "infinite", 3e38)
    (run.folder / "text").write_text("the value of this " * 40)
    ask(run.folder / "data", ["the object", "a name of it"])
    outcome = run("--task", *task, "--precision", "bf16", "--model_name", infinite, flash, "--json", "r.json")
    assert (outcome.code, outcome.notes[-1]) == (2, f"error: {NOT_FINITE}")
    assert not (run.folder / "r.json").exists()


@pytest.mark.parametrize("task", [("perplexity",), ("evaluate", "--tasks", "perplexity")])
def test_a_loss_that_has_no_exponential(run, model, tmp_path, task):
    huge = broken(model, tmp_path / "huge", 1e4)
    (run.folder / "text").write_text("the value of this " * 40)
    sizes = ("--dataset", "text", "--window", "32", "--precision", "bf16", "--model_name", huge)
    error = run("--task", *task, *sizes).error
    nats = int(error.split("(")[1].split()[0])
    assert nats > math.log(1.7976931348623157e308) and error == (
        f"the text is so unlikely to the model ({nats} nats a token) that its perplexity, exp({nats}), is no number a "
        f"computer has; the model's weights are damaged"
    )
