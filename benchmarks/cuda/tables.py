"""A report as tables, for the terminal and for docs/cuda.md."""

from collections.abc import Iterator

from rich.console import Console

from benchmarks.cuda.linears import ROWS, SHAPES
from benchmarks.cuda.report import LinearRun, Report
from benchmarks.docs import DOCS, between
from benchmarks.table import Table

PAGE = DOCS / "cuda.md"
BEGIN, END = "<!-- begin: python -m benchmarks.cuda --docs -->", "<!-- end -->"


def show(report: Report) -> None:
    console = Console(width=170)
    console.print(said(report))
    for table in tables(report):
        console.print(table.rich())


def write_docs(report: Report) -> None:
    """Put the tables between the two markers of docs/cuda.md."""
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, markdown(report)), encoding="utf-8")


def markdown(report: Report) -> str:
    parts = [said(report), *(f"**{table.title}**\n\n{table.markdown()}" for table in tables(report))]
    return "\n\n".join(parts)


def said(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    rates = ", ".join(f"{rate / 1e12:.2f} TB/s of {size / 1e6:.0f} MB" for size, rate in report.copy_rates.items())
    errors = ", ".join(f"{name} {error:.1e}" for name, error in report.errors.items())
    left = f" Left out: {'; '.join(report.left_out)}." if report.left_out else ""
    return (
        f"{report.device}; {versions}; `{report.backend}`. Copies, read and written: {rates}. Largest error beside "
        f"float64, the output rounded to bfloat16: {errors}.{left}"
    )


def tables(report: Report) -> Iterator[Table]:
    """Every table that the report has rows for."""
    every = [one_row_table(report), *(rows_table(report, n, k) for n, k in SHAPES.values())]
    every += [models_table(report), parts_table(report)]
    yield from (table for table in every if table.rows)


def one_row_table(report: Report) -> Table:
    """M = 1: microseconds, and the share of the copy rate that the weight's bytes come in at."""
    kernels = list(dict.fromkeys(run.kernel for run in report.linears))
    rows = []
    for name, (n, k) in SHAPES.items():
        runs = {run.kernel: run for run in report.linears if (run.n, run.k, run.m) == (n, k, 1)}
        if runs:
            rows.append([f"{name} {n} x {k}", *(_share(runs.get(kernel), report) for kernel in kernels)])
    title = f"One row: microseconds (share of {report.copy_rate / 1e12:.2f} TB/s)"
    return Table(title, ["layer", *kernels], rows)


def _share(run: LinearRun | None, report: Report) -> str:
    if run is None:
        return "-"
    return f"{run.seconds * 1e6:.1f} ({run.bytes / run.seconds / report.copy_rate:.2f})"


def rows_table(report: Report, n: int, k: int) -> Table:
    runs = {(run.kernel, run.m): run.seconds for run in report.linears if (run.n, run.k) == (n, k)}
    kernels = list(dict.fromkeys(kernel for kernel, _ in runs))
    cells = [[_microseconds(runs.get((kernel, m))) for m in ROWS] for kernel in kernels]
    headings = ["kernel", *(f"M = {m}" for m in ROWS)]
    return Table(
        f"{n} x {k}, microseconds", headings, [[kernel, *row] for kernel, row in zip(kernels, cells, strict=True)]
    )


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def models_table(report: Report) -> Table:
    floats = next((run for run in report.models if run.name == "bf16"), None)
    rows = [
        [
            run.name,
            f"{1 / run.step:.0f}",
            f"{run.tokens_a_second:.0f}",
            "-" if floats is None else f"{floats.step / run.step:.2f}",
            f"{run.weight_bytes / run.step / report.copy_rate:.2f}",
            f"{run.prefill_seconds * 1e3:.1f}",
            f"{run.weight_bytes / 1e9:.2f}",
            f"{run.peak_bytes / 1e9:.2f}",
            "yes" if run.same_again else "no",
        ]
        for run in report.models
    ]
    headings = [
        "Llama-2-7B", "tokens/s on the GPU", "with the loop", "times bf16", "of the copy rate", "128 tokens read, ms",
        "weights, GB", "peak, GB", "same tokens twice",
    ]  # fmt: skip
    return Table("A random Llama-2-7B, batch 1, 128 tokens after 128", headings, rows)


def parts_table(report: Report) -> Table:
    rows = [
        [run.name, kernel, f"{seconds * 1e3:.3f}"] for run in report.models for kernel, seconds in run.parts.items()
    ]
    return Table("Milliseconds of a token by kernel, each kind on its own", ["model", "kernel", "ms"], rows, texts=2)
