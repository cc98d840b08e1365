"""A table, as markdown and for the terminal."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """title: what the numbers are; texts: how many of the first columns are words."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    texts: int = 1

    def rich(self) -> "RichTable":
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if index < self.texts else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Without its title; columns of numbers are right-aligned."""
        rule = ["---"] * self.texts + ["---:"] * (len(self.headings) - self.texts)
        lines = [" | ".join(cells) for cells in (self.headings, rule, *self.rows)]
        return "\n".join(f"| {line} |" for line in lines)
