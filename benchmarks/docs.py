"""Keeping a file of docs/ equal to what a command makes of it."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def keep(file: Path, made: str, command: str) -> None:
    """Write what `command` made; where it was called with `--check`, write nothing and fail if the file differs."""
    if "--check" not in sys.argv:
        file.write_text(made, encoding="utf-8")
    elif file.read_text(encoding="utf-8") != made:
        sys.exit(f"docs/{file.name} is out of date: run {command}")


def between(page: str, begin: str, end: str, made: str) -> str:
    """The page with what stands between the lines `begin` and `end` replaced."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{made}\n\n{end}{rest.split(end, 1)[1]}"
