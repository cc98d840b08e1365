"""An opener's environment, made on first use, and what comes of a checkpoint in it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.interop.checkpoints import COUNT, Reference
from benchmarks.interop.openers import Opener

SCRIPTS = Path(__file__).parent / "scripts"
SECONDS = 900


@dataclass(frozen=True)
class Tried:
    """One row. opened: whether tokens came; same: how many of them are ours before one is not; said: the last line of
    an error; ids: whether the tokenizer gave the prompt the same tokens.
    """

    opener: str
    checkpoint: str
    date: str
    opened: bool
    same: int = 0
    ids: bool = False
    margin: float = 0.0
    prompt: str = ""
    said: str = ""
    versions: dict[str, str] = field(default_factory=dict)


class NoEnvironment(Exception):
    """pip could not make it."""


def environment(opener: Opener, folder: Path) -> Path:
    """Its Python. Raises `NoEnvironment` with pip's last word."""
    place = folder / opener.script.strip("_") / "-".join(opener.requires).replace("/", "_")
    python = place / "bin" / "python"
    if not (place / "made").is_file():
        _run([sys.executable, "-m", "venv", place])
        _run([python, "-m", "pip", "install", "-q", *opener.requires])
        if opener.anyhow:
            _run([python, "-m", "pip", "install", "-q", "--no-deps", *opener.anyhow])
        if opener.without:
            _run([python, "-m", "pip", "uninstall", "-q", "-y", *opener.without])
        (place / "made").touch()
    return python


def _run(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise NoEnvironment(last_line(done.stderr))


def attempt(opener: Opener, python: Path, name: str, directory: Path, reference: Reference, date: str) -> Tried:
    script = SCRIPTS / f"{opener.script}.py"
    ids = json.dumps(reference.ids)
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
    try:
        done = subprocess.run(
            [python, script, directory, reference.prompt, ids, str(COUNT)],
            capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **quiet}, cwd=directory.parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Tried(opener.name, name, date, False, said=f"nothing within {SECONDS} s")
    found = answer(done.stdout)
    if found is None:
        return Tried(opener.name, name, date, False, said=last_line(done.stderr))
    same = agreement(reference.tokens, found["tokens"])
    return Tried(
        opener.name, name, date, True, same, found["ids"] == reference.ids, reference.margin, reference.prompt,
        versions=found["versions"],
    )  # fmt: skip


def agreement(ours: list[int], theirs: list[int]) -> int:
    """How many tokens are the same before one is not."""
    pairs = list(zip(ours, theirs, strict=False))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))


def answer(output: str) -> dict | None:
    """The last line of a script's output that is an object with tokens."""
    for line in reversed(output.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and "tokens" in said:
            return said
    return None


def last_line(text: str) -> str:
    """The last one that names an error; where none does, the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): \S", line)]
    return (errors or lines or ["no word"])[-1][:200]
