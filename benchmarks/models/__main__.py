"""Quantize and run a tiny random model of every type, and compare it with transformers.

python -m benchmarks.models                       # every type, 2 at a time
python -m benchmarks.models qwen3_moe llava:wrapper
python -m benchmarks.models --json models.json --docs
python -m benchmarks.models qwen3_moe --json models.json --docs   # that row anew, the others as they were
"""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks.models.record import Record, Report
from benchmarks.models.table import reasons, summary, verdict
from benchmarks.models.workers import run_rows
from benchmarks.typed import from_json, to_json


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--workers", default=2, type=click.IntRange(1), show_default=True, help="Rows at a time, a thread each.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all that was found; of single rows, into what the file has of the others.",
)
@click.option("--docs", is_flag=True, help="Write docs/models.md.")
def main(names: Sequence[str], workers: int, json_file: Path | None, docs: bool) -> None:
    from benchmarks.models.page import write_page
    from benchmarks.models.steps import look
    from benchmarks.models.tiny import all_rows

    begun = time.perf_counter()
    every = [row.name for row in all_rows()]
    order = list(names) or every
    records: dict[str, Record] = {}

    def done(record: Record) -> None:
        records[record.name] = record
        click.echo(f"{len(records):3}/{len(order)} {record.name:28} {record.seconds:5.1f} s  {verdict(record)}")

    run_rows(order, workers, look, done)
    seconds = time.perf_counter() - begun
    if names and json_file and json_file.exists():
        earlier = from_json(Report, json_file.read_text(encoding="utf-8"))
        records = {record.name: record for record in earlier.records} | records
        seconds += earlier.seconds
    found = sorted(records.values(), key=lambda record: every.index(record.name))
    report = Report(_versions(), seconds, tuple(found))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(to_json(report, indent=1) + "\n", encoding="utf-8")
    if docs:
        write_page(report)
    for awq in ("run", "none"):
        click.echo(f"\nwith awq={awq}:")
        for reason, rows in reasons(found, awq).items():
            click.echo(f"  {len(rows):3}  {reason}\n       {', '.join(rows)}")
    click.echo(f"\n{dict(summary(found))} in {seconds:.0f} s")


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "transformers")}


if __name__ == "__main__":
    main()
