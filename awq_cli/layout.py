"""Cells and tables as every result has them, on a terminal of any width."""

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from engine.drafting import Drafted


def plain(text: str) -> str:
    """The user's text, in which brackets are brackets and not markup."""
    return escape(text)


def new_table(*columns: str) -> Table:
    """Names to the left, figures to the right; where there is no room, names give way (see `name_cell`)."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        named = column in ("layer", "prompt", "task", "metric")
        table.add_column(column, justify="left" if named else "right", no_wrap=not named)
    return table


def name_cell(text: str) -> Text:
    """A cell of the first column: one line, cut where there is no room."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def amount(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def passes(drafted: Drafted) -> str:
    return f"{number(drafted.tokens_per_pass, 2)} tokens a pass"
