"""The tables as docs/interop.md has them, which is where their rows are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.docs import DOCS, between
from benchmarks.interop.checkpoints import COUNT
from benchmarks.interop.openers import OPENERS
from benchmarks.interop.trying import Tried
from benchmarks.interop.writers import WRITERS
from benchmarks.table import Table

PAGE = DOCS / "interop.md"
END = "<!-- end -->"


@dataclass(frozen=True)
class Section:
    """A table between two lines of the page. order: of its rows, by program and checkpoint; others have no place."""

    begin: str
    headings: tuple[str, ...]
    order: tuple[tuple[str, str], ...]

    def write(self, row: Sequence[str]) -> None:
        """Put a row into docs/interop.md, in the place of the one that was tried before."""
        PAGE.write_text(self.with_row(PAGE.read_text(encoding="utf-8"), row), encoding="utf-8")

    def with_row(self, page: str, row: Sequence[str]) -> str:
        rows = {_key(each): each for each in (*self._rows(page), row)}
        kept = [rows[key] for key in ((name, f"`{made}`") for name, made in self.order) if key in rows]
        made = Table(self.begin, list(self.headings), [list(each) for each in kept], texts=len(self.headings))
        return between(page, self.begin, END, made.markdown())

    def _rows(self, page: str) -> list[list[str]]:
        """The cells of the rows that a page has."""
        lines = page.split(self.begin)[1].split(END)[0].strip().splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _key(row: Sequence[str]) -> tuple[str, str]:
    """Name of the program, without its versions, and the checkpoint."""
    return row[0].partition(" (")[0], row[1]


OPENED = Section(
    "<!-- begin: make interop -->",
    ("opener", "checkpoint", "result", "date"),
    tuple((opener.name, name) for opener in OPENERS for name in opener.opens),
)
FOREIGN = Section(
    "<!-- begin: make interop-foreign -->",
    ("written by", "checkpoint", "result here", "date"),
    tuple((writer.name, name) for writer in WRITERS for name in writer.makes),
)


def cells(program: str, versions: dict[str, str], checkpoint: str, result: str, date: str) -> list[str]:
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [f"{program} ({shown})" if shown else program, f"`{checkpoint}`", result.replace("|", "/"), date]


def verdict(tried: Tried) -> str:
    if not tried.opened:
        return f"fails: {tried.said}"
    if not tried.ids:
        return "opens, its tokenizer gives the prompt other tokens"
    if tried.same == COUNT:
        return "same tokens"
    return f"opens, the first {tried.same} of {COUNT} tokens are the same"
