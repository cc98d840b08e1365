"""Evaluating at the edges: answers that are too unlikely for exp, contexts that are too short, groups, idle options."""

import json
import math
from statistics import mean

import pytest

from awq_cli.questions import harness
from awq_cli.tasks import evaluate
from tests.awq_cli.test_evaluate import PRIMER, Reference

LONG = ["the value of this " * 70, "a name is bound " * 75]
GENERATED = """
task: told
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: {most}, until: ["."]}}
metric_list: [{{metric: exact_match}}]
"""


def test_answers_that_are_too_unlikely_for_exp(run, model, tokenizer, tmp_path):
    """Of lengths at which each is nothing to exp, and one still likelier than the other."""
    (tmp_path / "data").mkdir()
    questions = [
        {"question": "What is this?", "mc2_targets": {LONG[0].strip(): 1, LONG[1].strip(): 0}},
        {"question": "What is that?", "mc2_targets": {"a value": 1, "the name": 0}},
    ]
    (tmp_path / "data" / "truthfulqa_mc.json").write_text(json.dumps(questions))
    asked = ("--tasks", "truthfulqa_mc2", "--eval_data", tmp_path / "data", "--precision", "bf16")
    (score,) = run.result("--task", "evaluate", *asked, "--model_name", model, "--no_flash_attention")["scores"]
    reference, expected = Reference(model, tokenizer), []
    for question in questions:
        context = f"{PRIMER}\n\nQ: {question['question']}\nA:"
        right, wrong = (reference.log_likelihood(context, text) for text in question["mc2_targets"])
        expected.append(1 / (1 + math.exp(min(700, wrong - right))))
        assert question is not questions[0] or max(right, wrong) < -800
    assert score["value"] == pytest.approx(mean(expected), abs=0.01) and score["examples"] == 2


def test_figures_are_not_lost_to_a_task_that_has_no_room(run, model, make_model, text_file, tmp_path, monkeypatch):
    """Refused before the first window is read."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text(json.dumps({"text": "the value", "answer": "a"}) + "\n")
    asked = ("--tasks", "perplexity,told", "--eval_data", data, "--dataset", text_file, "--window", 32)
    asked += ("--precision", "bf16")
    read = []
    monkeypatch.setattr(evaluate, "negative_log_likelihood", lambda *_: read.append(1))
    (data / "told.yaml").write_text(GENERATED.format(rows=data / "rows.jsonl", most=9999))
    outcome = run("--task", "evaluate", *asked, "--model_name", model)
    assert "an answer of up to 9999 tokens has no room in the model's context of 600" in outcome.error
    # of a task that does not say so, as many as lm-eval takes
    (data / "told.yaml").write_text(GENERATED.format(rows=data / "rows.jsonl", most=9).replace("max_gen_toks: 9, ", ""))
    short = make_model(tmp_path / "short", max_position_embeddings=64)
    outcome = run("--task", "evaluate", *asked, "--model_name", short)
    assert "has no room in the model's context of 64" in outcome.error and not read


def test_a_float_model_is_not_read_beyond_its_context(run, rounded, make_model, text_file, tmp_path):
    short = make_model(tmp_path / "short", max_position_embeddings=32)
    asked = ("--tasks", "perplexity", "--dataset", text_file, "--window", 64, "--float_model", short)
    outcome = run("--task", "evaluate", "--checkpoint", rounded, *asked)
    assert outcome.error == "windows of --window need 64 tokens, more than the model's context of 32; ask for fewer"


def test_data_that_nothing_is_read_of(run, rounded, text_file, tmp_path):
    asked = ("--tasks", "perplexity", "--dataset", text_file, "--eval_data", tmp_path, "--float_model", "none")
    outcome = run("--task", "evaluate", "--checkpoint", rounded, *asked)
    assert "--eval_data" in outcome.error and "means nothing with --tasks perplexity and --dataset" in outcome.error


class Group:
    def get_all_tasks(self):
        return [type("Task", (), {"task_name": name}) for name in ("questions", "texts")]


def test_a_group_counts_the_questions_of_its_metric(monkeypatch):
    """Of ten questions and twelve texts, ten have an accuracy."""
    out = {
        "n-samples": {"questions": {"effective": 10}, "texts": {"effective": 12}},
        "results": {"questions": {"acc,none": 0.7}, "texts": {"exact_match,none": 0.5}},
        "groups": {"both": {"acc,none": 0.7}},
        "n-shot": {"questions": 0, "texts": 0},
    }
    monkeypatch.setattr("lm_eval.evaluator.evaluate", lambda *_, **__: out)
    monkeypatch.setattr("awq_cli.questions.asked.LanguageModel", lambda *_: None)
    loaded = {"tasks": {"questions": None, "texts": None}, "groups": {"both": Group()}}
    found = harness.answer(loaded, harness.Asked(("both",)), None, "answers", lambda _: None)
    assert [(one.task, one.metric, one.questions) for one in found] == [
        ("both", "acc", 10), ("questions", "acc", 10), ("texts", "exact_match", 12)
    ]  # fmt: skip
