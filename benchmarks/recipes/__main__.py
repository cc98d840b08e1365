"""The table of torchao's recipes for one model: every one quantized, timed and evaluated, each step in its own process.

\b
    python -m benchmarks.recipes --eval_data DIR --calib_data FILE --work DIR

writes docs/results.md and its two pictures. What is finished is kept in the work directory, checkpoints included, so
that a run that was stopped goes on where it was; a step is done again when its command has changed. Let nothing else
run meanwhile.
"""

import sys
from pathlib import Path

import click

from benchmarks.recipes.page import Figures, write_page
from benchmarks.recipes.rows import ROWS, Row
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.steps import ROOT, StepFailed, steps
from quantization.recipe import Recipe


def run_row(row: Row, settings: Settings) -> Figures:
    """Raises `StepFailed`."""
    results = {}
    for step in steps(row, settings):
        result = step.kept(settings.work)
        if result is None:
            click.echo(f"{row.name}: {step.kind.value}", err=True)
            result = step.run(settings.work)
        results[step.kind] = result
    return Figures.of(row, results)


def chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> list[Row]:
    """The rows of a list of names with commas, in the order of the table."""
    names = value.split(",") if value else [row.name for row in ROWS]
    unknown = [name for name in names if name not in {row.name for row in ROWS}]
    if unknown:
        raise click.BadParameter(f"there is no row {', '.join(unknown)}")
    return [row for row in ROWS if row.name in names]


ROWS_HELP = f"Which rows, with commas between, of {', '.join(row.name for row in ROWS)}."


@click.command(help=__doc__)
@click.option("--model_name", default="smollm2-135m-instruct", show_default=True)
@click.option("--group_size", type=click.IntRange(1), help="Of every quantized row.  [default: the command's own]")
@click.option("--calib_data", default=Recipe.calib_data, show_default=True)
@click.option("--n_samples", type=click.IntRange(1), default=Recipe.n_samples, show_default=True)
@click.option("--eval_data", type=click.Path(exists=True, file_okay=False), help="[default: from the hub]")
@click.option("--dataset", help="Text for the perplexity.  [default: that of --eval_data, or wikitext-2 from the hub]")
@click.option("--n_windows", type=click.IntRange(1), help="[default: all]")
@click.option("--limit", type=click.IntRange(1), help="Questions a task.  [default: all]")
@click.option("--rows", callback=chosen, help=ROWS_HELP)
@click.option("--threads", type=click.IntRange(1), help="[default: torch's own choice]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("build/table"))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=ROOT / "docs" / "results.md")
def main(rows: list[Row], work: Path, output: Path, **given) -> None:
    settings = Settings(work=work.resolve(), **given)
    figures, failed = [], []
    for row in rows:
        try:
            figures.append(run_row(row, settings))
        except StepFailed as failure:
            failed.append(row.name)
            click.echo(f"{row.name} failed: {failure}", err=True)
    if figures:
        write_page(figures, settings, output)
        click.echo(f"wrote {output}", err=True)
    if failed:
        sys.exit(f"rows that failed and are not in the table: {', '.join(failed)}")


if __name__ == "__main__":
    main()
