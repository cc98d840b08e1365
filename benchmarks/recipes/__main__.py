"""What every recipe makes of a model: quantized, timed and evaluated, each step in its own process.

\b
    python -m benchmarks.recipes --eval_data DIR --calib_data FILE --web FILE --draws 3
    python -m benchmarks.recipes --model_name mine --rows default-w4,learned-w4 --calib_data FILE --web FILE

writes docs/results.md and its pictures. What is finished is kept in the work directory, checkpoints included, so
that a run that was stopped goes on where it was; a step is done again when its command has changed. What was found is
on record in docs/results.json, and the page shows all of that: a table may be filled in several runs, of other rows,
draws and models, on other machines. Let nothing else run meanwhile.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from benchmarks.recipes.about import about, shown
from benchmarks.recipes.figures import Record, empty, ended, figures_of, windows_of
from benchmarks.recipes.page import write_page
from benchmarks.recipes.rows import ROWS, Row
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.steps import ROOT, Kind, Step, StepFailed, lay_on, steps
from quantization.recipe import Recipe


class Run:
    """Of one model: the results of each row's draws, by the kind of step."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.results: dict[Row, dict[int, dict[Kind, object]]] = {}
        self.failed: dict[str, str] = {}
        self.ended: dict[str, str] = {}  # of other programs that took too long
        self._pending: list[tuple[Row, int, Step]] = []

    def make(self, row: Row) -> None:
        """All steps but the yardstick's, which is laid on all of them together."""
        for draw in range(self.settings.draws if row.drawn else 1):
            results: dict[Kind, object] = {}
            try:
                for step in steps(row, draw, self.settings):
                    result = step.kept(self.settings.work)
                    if result is None and step.kind is Kind.YARDSTICK:
                        self._pending.append((row, draw, step))
                        continue
                    if result is None:
                        click.echo(f"{step.row}: {step.kind.value}", err=True)
                        result = step.run(self.settings.work)
                    if step.kind is Kind.QUANTIZE and "ended_after" in result:
                        self.ended[row.name] = ended(result)
                        return
                    results[step.kind] = result
            except StepFailed as failure:
                self.failed[row.name] = str(failure)
                click.echo(f"{row.name} failed: {failure}", err=True)
                return
            self.results.setdefault(row, {})[draw] = results

    def lay_on(self) -> None:
        pending = [(row, draw, step) for row, draw, step in self._pending if draw in self.results.get(row, {})]
        if pending:
            click.echo(f"the yardstick, on {', '.join(step.row for _, _, step in pending)}", err=True)
            lay_on([step for _, _, step in pending], self.settings.work)
        for row, draw, step in pending:
            self.results[row][draw][Kind.YARDSTICK] = step.kept(self.settings.work)


def chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> list[Row]:
    """The rows of a list of names with commas, in the order of the table."""
    names = value.split(",") if value is not None else [row.name for row in ROWS]
    unknown = [name for name in names if name not in {row.name for row in ROWS}]
    if unknown:
        raise click.BadParameter(f"there is no row {', '.join(unknown)}")
    return [row for row in ROWS if row.name in names]


def _need_installed(*packages: str) -> None:
    """What would be missed hours later."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise click.UsageError(f"{' and '.join(missing)} not installed; pip install -c constraints.txt -e '.[bench]'")


ROWS_HELP = f"Which rows, with commas between, of {', '.join(row.name for row in ROWS)}."
TEXT = click.Path(exists=True, dir_okay=False)
PATIENCE = "Minutes that another program has to make a checkpoint."


@click.command(help=__doc__)
@click.option("--model_name", "models", multiple=True, default=["smollm2-135m-instruct"], show_default=True)
@click.option("--group_size", type=click.IntRange(1), help="Of every quantized row.  [default: the command's own]")
@click.option("--calib_data", default=Recipe.calib_data, show_default=True)
@click.option("--n_samples", type=click.IntRange(1), default=Recipe.n_samples, show_default=True)
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Of the calibration text.")
@click.option("--eval_data", type=click.Path(exists=True, file_okay=False), help="Of questions.  [default: not asked]")
@click.option("--dataset", help="Text for the perplexity.  [default: that of --eval_data, or wikitext-2 from the hub]")
@click.option("--n_windows", type=click.IntRange(1), help="[default: all]")
@click.option("--web", type=TEXT, help="Text from the web for the yardstick.  [default: no yardstick]")
@click.option("--passages", type=click.IntRange(2), help="Of each kind of the yardstick's.  [default: its own]")
@click.option("--limit", type=click.IntRange(1), help="Questions a task.  [default: all]")
@click.option("--rows", callback=chosen, help=ROWS_HELP)
@click.option("--threads", type=click.IntRange(1), help="[default: torch's own choice]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("build/table"))
@click.option("--environments", type=click.Path(path_type=Path), default=Path("build/interop/environments"))
@click.option("--patience", type=click.IntRange(1), default=60, show_default=True, help=PATIENCE)
@click.option("--untimed", is_flag=True, help="Other work runs beside: no minutes, and no speeds.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=ROOT / "docs" / "results.md")
def main(rows: list[Row], work: Path, environments: Path, output: Path, **given) -> None:
    whole = Settings(work=work.resolve(), environments=environments.resolve(), **given)
    kept = output.with_suffix(".json")
    if kept == output:
        raise click.UsageError(f"--output {output} is where the figures go on record; give the page another ending")
    try:
        record = Record.read(kept) or empty(whole)
    except ValueError as error:
        raise click.UsageError(f"{kept} is no record of figures: {error}; give another --output") from error
    if record.settings != whole.shared():
        different = [name for name, value in whole.shared().items() if record.settings.get(name) != value]
        raise click.UsageError(f"{kept} has figures for other values of {', '.join(different)}; give another --output")
    _need_installed("matplotlib", *["lm_eval"] * (whole.eval_data is not None))
    failed: list[str] = []
    for model in whole.models:
        run = Run(whole.of_model(model))
        for row in rows:
            run.make(row)
        try:
            run.lay_on()
        except StepFailed as failure:
            failed.append("yardstick")
            click.echo(f"the yardstick failed: {failure}", err=True)
        failed += run.failed
        if run.results or run.ended:
            found = {row.name: figures_of(row, results, whole.untimed) for row, results in run.results.items()}
            windows = windows_of(next(iter(run.results.values()))[0]) if run.results else ""
            record = record.joined(shown(model), about(model), windows, found, run.ended)
            record.write(kept)
    if record.rows:
        write_page(record, output)
        click.echo(f"wrote {output}", err=True)
    if failed:
        sys.exit(f"failed, and not in the table unless from an earlier run: {', '.join(failed)}")


if __name__ == "__main__":
    main()
