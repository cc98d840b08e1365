"""`--task evaluate` on tasks of lm-eval's language that a directory defines: every way in which a task may ask."""

import json
import math
import shutil
from pathlib import Path
from statistics import mean

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.awq_cli.conftest import TEMPLATE

CHOICES = [
    {"q": "what is the value of this", "choices": ["the object", "a name of it", "x"], "gold": 2},
    {"q": "which class is a type", "choices": ["in the module", "of", "a"], "gold": 0},
    {"q": "the names of all", "choices": ["are given as a list of objects", "is"], "gold": 0},
]
SAID = [{"q": "what is an object", "a": "the"}, {"q": "is this a list of", "a": "is"}, {"q": "the class", "a": "of"}]
TEXTS = [{"text": "the object has a value so the class is a type"}, {"text": "a list of names is given"}]

COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}, cache_dir: "{cache}"}}
test_split: test
fewshot_split: test
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "Q: {{q}} A:"
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["STOP"], max_gen_toks: 6, do_sample: false}
filter_list:
  - {name: whole, filter: [{function: take_first}]}
  - {name: first-word, filter: [{function: regex, regex_pattern: "([^ ]+)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}, {metric: word_perplexity}]
"""
GROUP = """
group: own_group
task: [own_choice, own_other]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """Tasks own_choice, own_other (its first two questions), own_written, own_rolling; own_group of the first two."""
    folder = tmp_path / "tasks"
    folder.mkdir()

    def define(name, rows, body):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        common = COMMON.format(name=name, file=file, cache=tmp_path / "cache")
        (folder / f"{name}.yaml").write_text(common + body, encoding="utf-8")

    define("own_choice", CHOICES, CHOICE)
    define("own_other", CHOICES[:2], CHOICE)
    define("own_written", SAID, WRITTEN)
    define("own_rolling", TEXTS, ROLLING)
    (folder / "own_group.yaml").write_text(GROUP, encoding="utf-8")
    return folder


class Reference:
    """The float model by transformers, whole forwards, its softmax in float64."""

    def __init__(self, directory, tokenizer):
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        self.tokenizer = tokenizer

    @torch.no_grad()
    def rows(self, ids):
        return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def log_likelihood(self, context: str, continuation: str) -> float:
        ids = self.tokenizer(f"{context} {continuation}", add_special_tokens="<s>" not in context)["input_ids"]
        start = len(self.tokenizer(context, add_special_tokens="<s>" not in context)["input_ids"])
        rows = self.rows(ids)
        return sum(rows[at - 1, ids[at]].item() for at in range(start, len(ids)))

    def right(self, context: str, item: dict) -> float:
        scores = [self.log_likelihood(context, choice) for choice in item["choices"]]
        assert sorted(scores)[-1] - sorted(scores)[-2] > 0.1
        return float(scores.index(max(scores)) == item["gold"])

    def written(self, text: str, most: int) -> str:
        ids = self.tokenizer(text)["input_ids"]
        first = len(ids)
        while len(ids) < first + most and ids[-1] != self.tokenizer.eos_token_id:
            ids.append(int(self.rows(ids)[-1].argmax()))
        return self.tokenizer.decode([token for token in ids[first:] if token != self.tokenizer.eos_token_id])


def evaluated(run, model, tasks, names, *options):
    """On its modules a float model's logits are those of transformers to the last bit."""
    asked = ("--model_name", model, "--precision", "bf16", "--no_flash_attention", "--eval_data", tasks)
    result = run.result("--task", "evaluate", *asked, "--tasks", names, *options)
    return {(score["task"], score["metric"]): score for score in result["scores"]}, result


def test_choices_and_their_groups(run, model, tokenizer, tasks):
    scores, result = evaluated(run, model, tasks, "own_group,own_written")
    right = [Reference(model, tokenizer).right(f"Q: {item['q']} A:", item) for item in CHOICES]
    assert scores["own_choice", "acc"]["value"] == pytest.approx(mean(right))
    assert scores["own_other", "acc"]["value"] == pytest.approx(mean(right[:2]))
    group = scores["own_group", "acc"]
    assert group["value"] == pytest.approx(mean(right + right[:2]))
    assert (group["examples"], group["shots"], scores["own_choice", "acc"]["shots"]) == (5, None, 0)
    assert (result["chat"], list(scores)[0]) == (False, ("own_group", "acc"))


def test_what_is_written_is_judged_as_a_whole_and_in_part(run, model, tokenizer, tasks):
    reference = Reference(model, tokenizer)
    said = [reference.written(item["q"], 6) for item in SAID]
    answers = [said[0].split()[0], "no such word", said[2].split()[0]]
    lines = [json.dumps({"q": item["q"], "a": answer}) for item, answer in zip(SAID, answers, strict=True)]
    (tasks / "own_written.jsonl").write_text("\n".join(lines))
    scores, _ = evaluated(run, model, tasks, "own_written")
    assert scores["own_written", "exact_match (first-word)"]["value"] == pytest.approx(2 / 3)
    assert scores["own_written", "exact_match (whole)"]["value"] == pytest.approx(mean(map(float.__eq__, [0.0], [1.0])))


def test_an_answer_ends_where_the_task_says(run, model, tokenizer, tasks):
    """At a text of the task's, which is left out."""
    said = [Reference(model, tokenizer).written(item["q"], 6) for item in SAID]
    stop = said[0].split()[1]
    expected = [text.split(stop)[0] for text in said]
    file = tasks / "own_written.yaml"
    file.write_text(file.read_text().replace("STOP", stop))
    lines = [json.dumps({"q": item["q"], "a": answer}) for item, answer in zip(SAID, expected, strict=True)]
    (tasks / "own_written.jsonl").write_text("\n".join(lines))
    scores, _ = evaluated(run, model, tasks, "own_written")
    assert scores["own_written", "exact_match (whole)"]["value"] == 1.0


def test_whole_texts_are_scored(run, model, tokenizer, tasks):
    scores, _ = evaluated(run, model, tasks, "own_rolling")
    reference, total = Reference(model, tokenizer), 0.0
    for text in (row["text"] for row in TEXTS):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        rows = reference.rows(ids)
        total += sum(rows[at, ids[at + 1]].item() for at in range(len(ids) - 1))
    size = sum(len(row["text"].encode()) for row in TEXTS)
    assert scores["own_rolling", "byte_perplexity"]["value"] == pytest.approx(math.exp(-total / size), rel=1e-4)
    words = sum(len(row["text"].split()) for row in TEXTS)
    assert scores["own_rolling", "word_perplexity"]["value"] == pytest.approx(math.exp(-total / words), rel=1e-3)


def test_questions_go_through_the_chat_template_when_asked(run, model, tokenizer, tasks, tmp_path):
    talking = shutil.copytree(model, tmp_path / "talking")
    (talking / "chat_template.jinja").write_text(TEMPLATE)
    scores, result = evaluated(run, talking, tasks, "own_choice", "--chat")
    reference = Reference(model, tokenizer)
    begun = [f"<s> user Q: {item['q']} A: <s> assistant" for item in CHOICES]
    right = [reference.right(context, item) for context, item in zip(begun, CHOICES, strict=True)]
    assert scores["own_choice", "acc"]["value"] == pytest.approx(mean(right)) and result["chat"] is True


def test_shots_stand_before_a_question(run, model, tasks):
    scores, _ = evaluated(run, model, tasks, "own_choice", "--shots", 2)
    assert scores["own_choice", "acc"]["shots"] == 2
    file = tasks / "own_choice.yaml"
    file.write_text(file.read_text() + "num_fewshot: 0\n")
    scores, _ = evaluated(run, model, tasks, "own_choice", "--shots", 2)
    assert scores["own_choice", "acc"]["shots"] == 0


def test_refuses(run, model, tasks, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    file = tasks / "own_written.yaml"
    text = file.read_text()

    def error(*options):
        asked = ("--model_name", model, "--precision", "bf16", "--eval_data", tasks, "--tasks", "own_written")
        return run("--task", "evaluate", *asked, *options).error

    file.write_text(text + "unsafe_code: true\n")
    assert error() == (
        "--tasks: own_written runs the code that the model writes, on this machine; in a place where that may do no "
        "harm, set HF_ALLOW_CODE_EVAL=1"
    )
    file.write_text(text.replace("max_gen_toks: 6", "max_gen_toks: 5000"))
    assert error() == (
        "--tasks: an answer of up to 5000 tokens has no room in the model's context of 600; leave its task out"
    )
    file.write_text(text.replace("exact_match", "no_such_metric"))
    assert error() == ("--tasks own_written: lm-eval cannot ask them: TypeError: 'NoneType' object is not callable")
    file.write_text(text.replace("{{q}}", "{{q"))
    assert error().startswith("the questions of own_written could not be read: TemplateSyntaxError: ")
    file.write_text(text)
    assert error("--chat") == "--chat: tiny has no chat template; use --raw"
