"""The cuda target beside its peers and beside what the GPU's memory can do at best, in one run of a few minutes.

\b
    python -m benchmarks.cuda --json cuda.json --docs     everything
    python -m benchmarks.cuda --from cuda.json --docs     tables again, from what was saved

A peer that is not installed is named and left out.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.cuda.report import LinearRun, ModelRun, Report
from qlinear.errors import AwqError

COPIES = (256 << 20, 1 << 30, 4 << 30)


def say(text: str) -> None:
    click.echo(text, err=True)


def measure(models: bool) -> Iterator[Report]:
    """The report, again and again as it grows."""
    import torch

    from benchmarks.cuda.linears import largest_error, sweep
    from benchmarks.cuda.llama import run
    from benchmarks.cuda.timing import copy_rate
    from qlinear.backends.cuda.backend import CudaBackend
    from qlinear.backends.cuda.driver import GpuLauncher

    if not torch.cuda.is_available():
        raise click.ClickException("torch finds no CUDA device on this machine, and without one nothing is measured")
    torch.manual_seed(0)
    backend = CudaBackend(GpuLauncher())
    versions = {"torch": torch.__version__, "CUDA": str(torch.version.cuda)}
    report = Report(torch.cuda.get_device_name(), versions, backend.name)
    humming = _humming(report)
    report.errors = {f"w{bits}": largest_error(backend, bits) for bits in (4, 3)}
    report.copy_rates = {size: copy_rate(size) for size in COPIES}
    for bits in (16, 4, 3) if models else ():
        report.models.append(run(backend, bits))
        say(f"{report.models[-1]}")
        yield report
    for linear in sweep(backend, humming):
        say(f"{linear.kernel} {linear.n}x{linear.k} M={linear.m}: {linear.seconds * 1e6:.1f} us")
        report.linears.append(linear)
        yield report


def _humming(report: Report):
    from qlinear.backends.cuda.humming import HummingBackend

    try:
        humming = HummingBackend()
    except AwqError as error:
        report.left_out.append(str(error))
        return None
    report.versions["humming-kernels"] = humming.name.split()[-1]
    return humming


def saved(file: Path) -> Report:
    given = json.loads(file.read_text(encoding="utf-8"))
    given["linears"] = [LinearRun(**run) for run in given["linears"]]
    given["models"] = [ModelRun(**run) for run in given["models"]]
    given["copy_rates"] = {int(size): rate for size, rate in given["copy_rates"].items()}
    return Report(**given)


@click.command(help=__doc__)
@click.option("--json", "file", type=click.Path(path_type=Path), help="where to save what was measured")
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="a saved run, not a new one")
@click.option("--models/--no-models", default=True, help="whole models too")
@click.option("--docs", is_flag=True, help="write the tables into docs/cuda.md")
def main(file: Path | None, source: Path | None, models: bool, docs: bool) -> None:
    from benchmarks.cuda.tables import show, write_docs

    for report in measure(models) if source is None else (saved(source),):
        if file is not None:
            file.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    show(report)
    if docs:
        write_docs(report)


if __name__ == "__main__":
    sys.exit(main())
