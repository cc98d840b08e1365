"""The table as docs/interop.md has it, which is where its rows are kept."""

from collections.abc import Sequence

from benchmarks.docs import DOCS, between
from benchmarks.interop.checkpoints import COUNT
from benchmarks.interop.openers import OPENERS
from benchmarks.interop.trying import Tried
from benchmarks.table import Table

PAGE = DOCS / "interop.md"
BEGIN, END = "<!-- begin: make interop -->", "<!-- end -->"
HEADINGS = ["opener", "checkpoint", "result", "date"]


def write_row(tried: Tried) -> None:
    """Put a row between the two markers of docs/interop.md, in the place of the one that was tried before."""
    PAGE.write_text(with_row(PAGE.read_text(encoding="utf-8"), tried), encoding="utf-8")


def with_row(page: str, tried: Tried) -> str:
    """The page with that row in it, every row in the order of `OPENERS`, and none that they do not have."""
    rows = {_key(row): row for row in _rows(page)} | {(tried.opener, f"`{tried.checkpoint}`"): _cells(tried)}
    order = [(opener.name, f"`{name}`") for opener in OPENERS for name in opener.opens]
    return between(page, BEGIN, END, markdown([rows[key] for key in order if key in rows]))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return Table("openers", HEADINGS, [list(row) for row in rows], texts=len(HEADINGS)).markdown()


def verdict(tried: Tried) -> str:
    if not tried.opened:
        return f"fails: {tried.said}".replace("|", "/")
    if not tried.ids:
        return "opens, its tokenizer gives the prompt other tokens"
    if tried.same == COUNT:
        return "same tokens"
    return f"opens, the first {tried.same} of {COUNT} tokens are the same"


def _rows(page: str) -> list[list[str]]:
    """The cells of the rows that a page has."""
    lines = page.split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _key(row: Sequence[str]) -> tuple[str, str]:
    """Name of the opener, without its versions, and the checkpoint."""
    return row[0].partition(" (")[0], row[1]


def _cells(tried: Tried) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in tried.versions.items())
    opener = f"{tried.opener} ({versions})" if versions else tried.opener
    return [opener, f"`{tried.checkpoint}`", verdict(tried), tried.date]
