"""An opener's environment, made on first use, and what comes of a checkpoint in it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.interop.checkpoints import COUNT, Reference
from benchmarks.interop.openers import Opener, Program

SCRIPTS = Path(__file__).parent / "scripts"
SECONDS = 900
# Of an environment's own Python: nothing is asked of the hub, and nothing found that is installed here.
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
# Run in an environment with names of packages: which version of each it has, as JSON.
VERSIONS = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


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


def environment(program: Program, folder: Path) -> Path:
    """Its Python. Raises `NoEnvironment` with pip's last word."""
    place = folder / program.script.removeprefix("write_").strip("_") / "-".join(program.requires).replace("/", "_")
    python = place / "bin" / "python"
    if not (place / "made").is_file():
        _run([sys.executable, "-m", "venv", place])
        _run([python, "-m", "pip", "install", "-q", *program.requires])
        if program.anyhow:
            _run([python, "-m", "pip", "install", "-q", "--no-deps", *program.anyhow])
        if program.without:
            _run([python, "-m", "pip", "uninstall", "-q", "-y", *program.without])
        (place / "made").touch()
    return python


def _run(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise NoEnvironment(last_line(done.stderr))


def attempt(opener: Opener, python: Path, name: str, directory: Path, reference: Reference, date: str) -> Tried:
    script = SCRIPTS / f"{opener.script}.py"
    ids = json.dumps(reference.ids)
    row = Tried(opener.name, name, date, False, versions=versions(python, opener.shows))
    try:
        done = subprocess.run(
            [python, script, directory, reference.prompt, ids, str(COUNT)],
            capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **QUIET}, cwd=directory.parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return replace(row, said=f"nothing within {SECONDS} s")
    found = answer(done.stdout)
    if found is None:
        return replace(row, said=last_line(done.stderr))
    same = agreement(reference.tokens, found["tokens"])
    compared = dict(same=same, ids=found["ids"] == reference.ids, margin=reference.margin, prompt=reference.prompt)
    return replace(row, opened=True, **compared)


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Which version of each package that Python's environment has."""
    asked = subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, text=True, check=True)
    return json.loads(asked.stdout)


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
