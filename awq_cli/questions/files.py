"""Questions of the choice tasks from local files: each layout read into the rows that lm-eval's own task expects.

The layouts are described in docs/evaluation.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from qlinear.errors import OptionError, one_line
from quantization.texts.files import read_file

# The text that perplexity is measured on, beside the questions.
TEXT = "wikitext-2-raw-v1.test.txt"


@dataclass(frozen=True)
class Layout:
    """file: its name in the directory; split: the one that lm-eval's task asks; row: one entry as the hub has it."""

    file: str
    split: str
    row: Callable[[dict], dict]


def _arc(entry: dict) -> dict:
    choices, gold = _texts(entry, "choices"), _gold(entry, "choices")
    labels = [str(number) for number in range(1, len(choices) + 1)]
    return {
        "question": _text(entry, "query").removeprefix("Question: "),
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[gold],
    }


def _winogrande(entry: dict) -> dict:
    """The words both options begin with are the sentence up to its gap; lm-eval puts the options back."""
    options, gold = _texts(entry, "context_options"), _gold(entry, "context_options")
    _require(len(options) == 2, "context_options has to hold two texts")
    before = commonprefix(options)
    before = before[: before.rfind(" ") + 1]
    _require("_" not in before, "context_options may hold no underscore, which stands for the gap")
    return {
        "sentence": f"{before}_ {_text(entry, 'continuation')}",
        "option1": options[0][len(before) :],
        "option2": options[1][len(before) :],
        "answer": str(gold + 1),
    }


def _truthfulqa(entry: dict) -> dict:
    answers = entry.get("mc2_targets")
    _require(isinstance(answers, dict) and len(answers) > 0, "mc2_targets has to be an object of answers")
    _require(all(label in (0, 1) for label in answers.values()), "in mc2_targets each answer is 0 or 1")
    _require(all(map(_is_text, answers)), "in mc2_targets each answer has to be a text")
    _require({0, 1} <= set(answers.values()), "mc2_targets has to hold right answers (1) and wrong ones (0)")
    targets = {"choices": list(answers), "labels": list(map(int, answers.values()))}
    return {"question": _text(entry, "question"), "mc2_targets": targets, "mc1_targets": targets}


LAYOUTS = {
    "truthfulqa_mc2": Layout("truthfulqa_mc.json", "validation", _truthfulqa),
    "winogrande": Layout("winogrande.jsonl", "validation", _winogrande),
    "arc_challenge": Layout("arc_challenge.jsonl", "test", _arc),
}


def read_rows(directory: Path, task: str) -> list[dict]:
    """A task's rows as the hub has them. Raises `OptionError` naming the file and the entry that is wrong."""
    layout = LAYOUTS[task]
    path = directory / layout.file
    entries = _entries(path, task)
    if not entries:
        raise OptionError(f"{path} holds no questions")
    rows = []
    for number, entry in enumerate(entries, 1):
        try:
            _require(isinstance(entry, dict), "it has to be a JSON object")
            rows.append(layout.row(entry))
        except ValueError as error:
            raise OptionError(f"{path}: entry {number}: {error}") from error
    return rows


def _entries(path: Path, task: str) -> list[Any]:
    needed = f"; --tasks {task} needs it (docs/evaluation.md)"
    text = read_file(path, f"--eval_data: {path}", OptionError, needed)
    if path.suffix == ".json":
        entries = _parsed(text, str(path))
        if not isinstance(entries, list):
            raise OptionError(f"{path} has to be a JSON array")
        return entries
    lines = enumerate(text.split("\n"), 1)  # a string may hold the other characters that end lines elsewhere
    return [_parsed(line, f"{path}: line {number}") for number, line in lines if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where} is not JSON: {one_line(error)}") from error


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise ValueError(words)


def _is_text(value: Any) -> bool:
    """Of more than blanks; half a character, which JSON can spell, is none."""
    return isinstance(value, str) and value.strip() != "" and not any("\ud800" <= c <= "\udfff" for c in value)


def _text(entry: dict, key: str) -> str:
    value = entry.get(key)
    _require(_is_text(value), f"{key} has to be a text")
    return value


def _texts(entry: dict, key: str) -> list[str]:
    values = entry.get(key)
    good = isinstance(values, list) and len(values) > 1 and all(map(_is_text, values))
    _require(good, f"{key} has to be a list of at least two texts")
    return values


def _gold(entry: dict, key: str) -> int:
    gold = entry.get("gold")
    _require(type(gold) is int and 0 <= gold < len(entry[key]), f"gold has to be the number, from 0, of one of {key}")
    return gold
