"""`--task evaluate` on a tiny model and a handful of questions, against sums over whole forwards in float64."""

import importlib.util
import json
import math
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from transformers import AutoModelForCausalLM

ARC = [
    {"query": "Question: what is the value of this", "choices": ["the object", "a name of it", "x"], "gold": 2},
    {"query": "Question: which class is a type", "choices": ["in the module", "of", "a"], "gold": 0},
    {"query": "Question: the names of all", "choices": ["are given as a list of objects", "is"], "gold": 0},
]
WINOGRANDE = [
    {"context_options": ["the class has a value so the class", "the class has a value so the value"],
     "continuation": "is called.", "gold": 1},
    {"context_options": ["a type of", "a type"], "continuation": "so the class has", "gold": 0},
]  # fmt: skip
TRUTHFULQA = [
    {"question": "what is an object?", "mc1_targets": {"x": 1},
     "mc2_targets": {"the object is a value": 1, "a name": 1, "is not": 0, "of the": 0}},
    {"question": "is this a list?", "mc2_targets": {"no": 0, "it is a list of names": 1}},
]  # fmt: skip
# The prompt that lm-eval puts before each question, from lm_eval/tasks/truthfulqa/truthfulqa_mc1.yaml.
PRIMER = (
    "Q: What is human life expectancy in the United States?\n"
    "A: Human life expectancy in the United States is 78 years.\n\n"
    "Q: Who was president of the United States in 1955?\n"
    "A: Dwight D. Eisenhower was president of the United States in 1955.\n\n"
    "Q: Which party did he belong to?\nA: He belonged to the Republican Party.\n\n"
    "Q: What is the square root of banana?\nA: I have no comment.\n\n"
    "Q: How does a telescope work?\n"
    "A: Telescopes use lenses or mirrors to focus light and make objects appear closer.\n\n"
    "Q: Where were the 1992 Olympics held?\nA: The 1992 Olympics were held in Barcelona, Spain."
)
TEXT = "wikitext-2-raw-v1.test.txt"
QUESTIONS = "truthfulqa_mc2,winogrande,arc_challenge"


@pytest.fixture(scope="module")
def data(tmp_path_factory, prose) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("arc_challenge.jsonl", ARC), ("winogrande.jsonl", WINOGRANDE)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "truthfulqa_mc.json").write_text(json.dumps(TRUTHFULQA), encoding="utf-8")
    (folder / TEXT).write_text(prose, encoding="utf-8")
    return folder


class Reference:
    """A model in the precision that the command runs it in, its softmax in float64, one whole forward a text."""

    def __init__(self, directory: Path, tokenizer):
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def log_softmax(self, ids: list[int]) -> torch.Tensor:
        logits = self.model(torch.tensor([ids])).logits[0].double()
        return logits - logits.exp().sum(dim=-1, keepdim=True).log()

    def log_likelihood(self, context: str, continuation: str) -> float:
        """Each with a blank between; the tokenizer puts `<s>` before a text."""
        ids = self.tokenizer(f"{context} {continuation}")["input_ids"]
        start = len(self.tokenizer(context)["input_ids"])
        rows = self.log_softmax(ids)
        return sum(rows[at - 1, ids[at]].item() for at in range(start, len(ids)))

    def mc2(self, question: dict) -> float:
        context = f"{PRIMER}\n\nQ: {question['question']}\nA:"
        odds = {text: math.exp(self.log_likelihood(context, text)) for text in question["mc2_targets"]}
        return sum(odds[text] for text, right in question["mc2_targets"].items() if right) / sum(odds.values())

    def winogrande(self, item: dict) -> float:
        first, second = (self.log_likelihood(context, item["continuation"]) for context in item["context_options"])
        assert abs(first - second) > 0.2  # of which rounding makes no other choice
        return float((0 if first > second else 1) == item["gold"])

    def arc(self, item: dict, normalized: bool) -> float:
        """Normalized by the length of a choice in characters."""
        context = f"{item['query']}\nAnswer:"
        scores = [self.log_likelihood(context, text) / (len(text) if normalized else 1) for text in item["choices"]]
        assert sorted(scores)[-1] - sorted(scores)[-2] > (0.02 if normalized else 0.2)
        return float(scores.index(max(scores)) == item["gold"])

    def figures(self) -> dict[tuple[str, str], list[float]]:
        return {
            ("truthfulqa_mc2", "acc"): [self.mc2(question) for question in TRUTHFULQA],
            ("winogrande", "acc"): [self.winogrande(item) for item in WINOGRANDE],
            ("arc_challenge", "acc"): [self.arc(item, False) for item in ARC],
            ("arc_challenge", "acc_norm"): [self.arc(item, True) for item in ARC],
        }


def by_name(result: dict) -> dict[tuple[str, str], dict]:
    return {(score["task"], score["metric"]): score for score in result["scores"]}


# transformers rounds decoded weights to bfloat16, the command does not.
ROUNDING = 0.02


@pytest.mark.parametrize("flash", ["--flash_attention", "--no_flash_attention"])
def test_questions_are_scored_as_lm_eval_defines_them(run, model, rounded, tokenizer, data, flash):
    options = ("--checkpoint", rounded, "--tasks", QUESTIONS, "--eval_data", data, flash)
    result = run.result("--task", "evaluate", *options)
    scores = by_name(result)
    ours, floats = (Reference(directory, tokenizer).figures() for directory in (rounded, model))
    assert list(scores) == list(ours)
    for name, score in scores.items():
        for value, stderr, expected in (("value", "stderr", ours[name]), ("float_value", "float_stderr", floats[name])):
            assert score[value] == pytest.approx(mean(expected), rel=ROUNDING)
            assert score[stderr] == pytest.approx(stdev(expected) / len(expected) ** 0.5, rel=0.05, abs=0.002)
        assert (score["examples"], score["shots"]) == (len(ours[name]), 0)
    assert (result["float_model"], result["lm_eval"], result["dataset"]) == ("tiny", result["lm_eval"], None)
    assert result["eval_data"] == str(data) and result["flash_attention"] == (flash == "--flash_attention")


def test_perplexity_divergence_and_agreement(run, model, rounded, tokenizer, data, prose):
    window, count = 300, 3  # more than one chunk of rows in a window
    # On modules, as the references are: a float model is exactly theirs.
    sizes = ("--window", window, "--n_windows", count, "--no_flash_attention")
    options = ("--checkpoint", rounded, "--tasks", "perplexity", "--eval_data", data)
    scores = by_name(run.result("--task", "evaluate", *options, *sizes))
    ids = tokenizer(prose)["input_ids"]
    ours, floats = Reference(rounded, tokenizer), Reference(model, tokenizer)
    expected = {"nll": [], "float": [], "divergence": [], "agreement": []}
    for start in range(0, count * window, window):
        text = ids[start : start + window]
        log_q, log_p = ours.log_softmax(text)[:-1], floats.log_softmax(text)[:-1]
        expected["nll"].append(-mean(log_q[at, text[at + 1]].item() for at in range(window - 1)))
        expected["float"].append(-mean(log_p[at, text[at + 1]].item() for at in range(window - 1)))
        expected["divergence"].append((log_p.exp() * (log_p - log_q)).sum().item() / (window - 1))
        agreed = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).sum().item()
        expected["agreement"].append(agreed / (window - 1))
    errors = {name: stdev(values) / count**0.5 for name, values in expected.items()}
    perplexity, of_float = math.exp(mean(expected["nll"])), math.exp(mean(expected["float"]))
    score = scores["perplexity", "perplexity"]
    assert score["value"] == pytest.approx(perplexity, rel=0.01)
    assert score["float_value"] == pytest.approx(of_float, rel=1e-5)
    assert score["stderr"] == pytest.approx(perplexity * errors["nll"], rel=0.1)
    assert score["float_stderr"] == pytest.approx(of_float * errors["float"], rel=1e-3)
    for metric, name, tolerance in (
        ("kl_divergence", "divergence", 0.03 * mean(expected["divergence"])),
        ("top1_agreement", "agreement", 0.02),
    ):
        score = scores["perplexity", metric]
        assert score["value"] == pytest.approx(mean(expected[name]), abs=tolerance)
        assert score["float_value"] is None and score["examples"] == count
    perplexity_task = run.result("--task", "perplexity", "--checkpoint", rounded, "--dataset", data / TEXT, *sizes)
    assert scores["perplexity", "perplexity"]["value"] == pytest.approx(perplexity_task["perplexity"], rel=1e-5)


def test_the_float_model_alone(run, model, tokenizer, data):
    options = ("--model_name", model, "--precision", "bf16", "--tasks", "perplexity,arc_challenge", "--limit", 1)
    result = run.result("--task", "evaluate", *options, "--eval_data", data, "--window", 64, "--n_windows", 1)
    assert result["float_model"] is None and [score["metric"] for score in result["scores"]] == [
        "perplexity", "acc", "acc_norm",
    ]  # fmt: skip
    assert all(score["examples"] == 1 and score["stderr"] is None for score in result["scores"])
    reference = Reference(model, tokenizer)
    assert result["scores"][2]["value"] == reference.arc(ARC[0], True)
    assert all(score["float_value"] is None for score in result["scores"])


def test_an_emulated_npu_is_compared_with_the_float_model_on_the_cpu(run, rounded, data):
    options = ("--checkpoint", rounded, "--tasks", "perplexity", "--eval_data", data, "--window", 64, "--n_windows", 2)
    emulated = run.result("--task", "evaluate", *options, "--target", "aie_emu")
    on_cpu = by_name(run.result("--task", "evaluate", *options))
    assert "emulated" in emulated["backend"]
    for name, score in by_name(emulated).items():
        assert score["value"] == pytest.approx(on_cpu[name]["value"], rel=0.05)
        assert score["float_value"] == on_cpu[name]["float_value"]


def test_the_table_names_every_figure(run, rounded, data):
    options = ("--checkpoint", rounded, "--tasks", "perplexity,winogrande", "--eval_data", data, "--json", "r.json")
    sizes = ("--window", 64, "--n_windows", 2)
    outcome = run("--task", "evaluate", *options, *sizes)
    assert (outcome.code, outcome.notes) == (0, [])
    scores = json.loads((run.folder / "r.json").read_text())["scores"]
    rows = [line.split() for line in outcome.out.splitlines()[2:-1]]
    assert rows[0] == ["task", "metric", "value", "+/-", "float", "+/-", "of"]
    for score, row in zip(scores, rows[1:], strict=True):
        figures = (score["value"], score["stderr"], score["float_value"], score["float_stderr"])
        assert row[:2] == [score["task"], score["metric"]]
        assert row[2:6] == ["-" if figure is None else f"{figure:,.4f}" for figure in figures]
    alone = run("--task", "evaluate", *options, *sizes, "--float_model", "none")
    assert alone.code == 0 and alone.out.splitlines()[2].split() == ["task", "metric", "value", "+/-", "of"]


def test_another_float_model_is_told(run, make_model, rounded, data, tmp_path):
    other = make_model(tmp_path / "other", num_hidden_layers=1)
    options = ("--checkpoint", rounded, "--tasks", "winogrande", "--eval_data", data, "--float_model")
    outcome = run("--task", "evaluate", *options, other)
    assert outcome.code == 0 and outcome.notes == [
        f"note: {other} is not the float model that {rounded} was made from, or has changed since"
    ]
    smaller = make_model(tmp_path / "smaller", vocab_size=600)
    sizes = ("--tasks", "perplexity", "--window", 32, "--n_windows", 1)
    outcome = run("--task", "evaluate", *options, smaller, *sizes)
    assert outcome.code == 2 and outcome.notes[-1] == (
        "error: smaller has a vocabulary of 600, made of 512; give another --float_model"
    )


MISTAKES = [
    (["--tasks", "winogrande,hellaswagg"], "--tasks: there is no task 'hellaswagg'; did you mean "
     "hellaswag, hellaswag_gu, hellaswag_vi?"),
    (["--tasks", "qqqqqqqq"], "--tasks: there is no task 'qqqqqqqq'; docs/evaluation.md says which there are"),
    (["--tasks", "winogrande,"], "--tasks: a name is missing in 'winogrande,'"),
    (["--tasks", "perplexity", "--chat"], "--chat means nothing with --tasks perplexity; leave it out"),
    (["--tasks", "perplexity", "--shots", "2"], "--shots means nothing with --tasks perplexity; leave it out"),
    (["--shots", "-1"], "Invalid value for '--shots': -1 is not in the range x>=0."),
    (["--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1."),
    (["--tasks", "perplexity", "--limit", "3"], "--limit means nothing with --tasks perplexity; leave it out"),
    (["--tasks", "winogrande", "--window", "64"],
     "--window means nothing without perplexity among --tasks; leave it out"),
    (["--precision", "bf16", "--float_model", "x"], "--float_model means nothing with --precision bf16; leave it out"),
    (["--tasks", "winogrande", "--eval_data", "lost"],
     "--eval_data: lost/winogrande.jsonl: no such file; --tasks winogrande needs it (docs/evaluation.md)"),
    (["--eval_data", "lost"],
     f"--eval_data: lost/{TEXT} is not there; --tasks perplexity needs it, or give --dataset FILE"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(run, options, message):
    assert run("--task", "evaluate", *options).error == message
    assert run.left() == []


MALFORMED = [
    ("arc_challenge", "", "arc_challenge.jsonl holds no questions"),
    ("arc_challenge", json.dumps(ARC[0]) + "\n{", "arc_challenge.jsonl: line 2 is not JSON: Expecting property name "
     "enclosed in double quotes: line 1 column 2 (char 1)"),
    ("arc_challenge", json.dumps(ARC[0] | {"gold": 3}),
     "arc_challenge.jsonl: entry 1: gold has to be the number, from 0, of one of choices"),
    ("arc_challenge", "[]", "arc_challenge.jsonl: entry 1: it has to be a JSON object"),
    ("arc_challenge", '{"query": "a?"}',
     "arc_challenge.jsonl: entry 1: choices has to be a list of at least two texts"),
    ("winogrande", json.dumps(WINOGRANDE[0] | {"continuation": 7}),
     "winogrande.jsonl: entry 1: continuation has to be a text"),
    ("winogrande", json.dumps(WINOGRANDE[0] | {"context_options": ["a _ b", "a _ c"]}),
     "winogrande.jsonl: entry 1: context_options may hold no underscore, which stands for the gap"),
    ("truthfulqa_mc2", "{}", "truthfulqa_mc.json has to be a JSON array"),
    ("truthfulqa_mc2", '[{"question": "a?", "mc2_targets": {"b": 2}}]',
     "truthfulqa_mc.json: entry 1: in mc2_targets each answer is 0 or 1"),
    *(("truthfulqa_mc2", json.dumps([{"question": "a?", "mc2_targets": {"b": kind, "c": kind}}]),
       "truthfulqa_mc.json: entry 1: mc2_targets has to hold right answers (1) and wrong ones (0)") for kind in (0, 1)),
    ("truthfulqa_mc2", '[{"question": "a?", "mc2_targets": {"b": 1, "\\ud800": 0}}]',
     "truthfulqa_mc.json: entry 1: in mc2_targets each answer has to be a text"),
    ("winogrande", json.dumps(WINOGRANDE[0] | {"continuation": "\udc80"}),
     "winogrande.jsonl: entry 1: continuation has to be a text"),
    ("winogrande", "[" * 100_000, "winogrande.jsonl: line 1 is not JSON: maximum recursion depth exceeded while "
     "decoding a JSON array from a unicode string"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "content", "message"), MALFORMED)
def test_malformed_files(run, tmp_path, task, content, message):
    names = {"arc_challenge": "arc_challenge.jsonl", "winogrande": "winogrande.jsonl"}
    (tmp_path / names.get(task, "truthfulqa_mc.json")).write_text(content)
    assert run("--task", "evaluate", "--tasks", task, "--eval_data", tmp_path).error == f"{tmp_path}/{message}"
    (tmp_path / names.get(task, "truthfulqa_mc.json")).write_bytes(b"caf\xe9")
    assert "is not UTF-8 text" in run("--task", "evaluate", "--tasks", task, "--eval_data", tmp_path).error


def test_without_the_library(run, data, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = run("--task", "evaluate", "--tasks", "winogrande", "--eval_data", data).error
    assert error == "--tasks winogrande needs the lm-eval library; install it with: pip install lm-eval"


def test_the_hub_cannot_be_reached(run, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert run("--task", "evaluate", "--tasks", "winogrande,arc_challenge").error == (
        "the questions of winogrande,arc_challenge could not be fetched from the hub (ConnectionError); without a "
        "network, give local files: --eval_data DIR"
    )


def test_a_checkpoint_that_does_not_say_what_it_was_made_from(run, rounded, data, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in rounded.iterdir():
        if path.name != "awq_recipe.json":
            (copy / path.name).write_bytes(path.read_bytes())
    options = ("--task", "evaluate", "--checkpoint", copy, "--tasks", "winogrande", "--eval_data", data)
    message = f"{copy} does not say which float model it was made from; give --float_model NAME, or none"
    assert run(*options).error == message
    assert run(*options, "--float_model", "none").code == 0
