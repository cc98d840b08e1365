"""The table as docs/interop.md has it."""

from collections.abc import Iterable

from benchmarks.docs import DOCS, between
from benchmarks.interop.checkpoints import COUNT
from benchmarks.interop.trying import Tried
from benchmarks.table import Table

PAGE = DOCS / "interop.md"
BEGIN, END = "<!-- begin: make interop -->", "<!-- end -->"
HEADINGS = ["opener", "checkpoint", "result", "date"]


def write_page(rows: Iterable[Tried]) -> None:
    """Put the table between the two markers of docs/interop.md."""
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, markdown(rows)), encoding="utf-8")


def markdown(rows: Iterable[Tried]) -> str:
    cells = [[_opener(tried), f"`{tried.checkpoint}`", verdict(tried), tried.date] for tried in rows]
    return Table("openers", HEADINGS, cells, texts=len(HEADINGS)).markdown()


def verdict(tried: Tried) -> str:
    if not tried.opened:
        return f"fails: {tried.said}".replace("|", "/")
    if not tried.ids:
        return "opens, its tokenizer gives the prompt other tokens"
    if tried.same == COUNT:
        return "same tokens"
    return f"opens, the first {tried.same} of {COUNT} tokens are the same"


def _opener(tried: Tried) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in tried.versions.items())
    return f"{tried.opener} ({versions})" if versions else tried.opener
