"""What speculation is worth: texts that repeat their prompt and free ones, with and without proposals in turns.

\b
    python -m benchmarks.speculation --checkpoint DIR
    python -m benchmarks.speculation --checkpoint DIR --draft SMALLER --repeats 9 --docs

Every answer is compared with the one without, token by token. `--docs` keeps the tables in docs/speculation.md.
"""

import os
from pathlib import Path

import click
from rich.console import Console

from benchmarks.docs import DOCS, between
from benchmarks.machine import processor
from benchmarks.speculation.pairs import FREE_BAR, REPEATING_BAR, costs_table, pairs, pairs_table, pass_costs
from benchmarks.speculation.texts import FREE, REPEATING
from benchmarks.table import Table
from engine.worth import MOST
from qlinear.backends.cpu import native
from run_awq import load

BEGIN, END = "<!-- python -m benchmarks.speculation -->", "<!-- end -->"
COST_ROUNDS = 40


@click.command(help=__doc__)
@click.option("--checkpoint", type=click.Path(exists=True, file_okay=False), required=True, help="Of the cpu.")
@click.option("--draft", default="lookup", show_default=True, help="lookup, or a smaller checkpoint.")
@click.option("--new_tokens", type=click.IntRange(2), default=160, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Pairs of answers of each text.")
@click.option("--docs", is_flag=True, help="Keep the tables in docs/speculation.md.")
def main(checkpoint: str, draft: str, new_tokens: int, repeats: int, docs: bool) -> None:
    model = load(checkpoint, draft=draft)
    rows = pairs(model, REPEATING, new_tokens, repeats, REPEATING_BAR) + pairs(
        model, FREE, new_tokens, repeats, FREE_BAR
    )
    where = f"{Path(checkpoint).name} on {model.about.code}"
    how = f"{native.threads()} threads of {processor()}, load average {os.getloadavg()[0]:.0f}"
    proposing = draft if draft == "lookup" else Path(draft).name
    tables = [
        pairs_table(rows, f"{where}, draft {proposing}: tokens a second, medians of {repeats} pairs; {how}"),
        costs_table(
            pass_costs(model.decoder(512), 1 + MOST, COST_ROUNDS),
            f"{where}: what a pass over so many rows takes, in passes over one, medians of {COST_ROUNDS}; {how}",
        ),
    ]
    for table in tables:
        Console().print(table.rich())
    if docs:
        page = DOCS / "speculation.md"
        made = "\n\n".join(_titled(table) for table in tables)
        page.write_text(between(page.read_text(encoding="utf-8"), BEGIN, END, made), encoding="utf-8")


def _titled(table: Table) -> str:
    return f"{table.title}:\n\n{table.markdown()}"


if __name__ == "__main__":
    main()
