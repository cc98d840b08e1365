"""A report as tables, for the terminal and for docs/cpu.md."""

from collections.abc import Iterator
from statistics import median

from rich.console import Console

from benchmarks.cpu.linears import MANY_ROWS
from benchmarks.cpu.report import Kernel, Limit, LinearRun, ModelRow, ModelRun, Report, Timed
from benchmarks.docs import DOCS, between
from benchmarks.table import Table

PAGE = DOCS / "cpu.md"
BEGIN, END = "<!-- begin: python -m benchmarks.cpu --docs -->", "<!-- end -->"
PICTURE = "![Weight bytes and operations a second over M, below the machine's limits](cpu-kernels.svg)"
TABLE_ROWS = (1, 128, 512)


def show(report: Report) -> None:
    console = Console(width=170)
    for table in tables(report):
        console.print(table.rich())


def write_docs(report: Report) -> None:
    """Put the tables between the two markers of docs/cpu.md."""
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, markdown(report)), encoding="utf-8")


def markdown(report: Report) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    said = f"{machine.processor}, {machine.threads} threads, instruction set {machine.instruction_set}; {versions}."
    parts = [said, *[PICTURE] * (len(report.sweep()) > 1)]
    return "\n\n".join([*parts, *(f"**{table.title}**\n\n{table.markdown()}" for table in tables(report))])


def tables(report: Report) -> Iterator[Table]:
    """Every table that the report has rows for."""
    every = [limits_table(report), *(shapes_table(report, m) for m in TABLE_ROWS)]
    every += [sweep_table(report), models_table(report), starts_table(report)]
    yield from (table for table in every if table.rows)


def limits_table(report: Report) -> Table:
    runs = [*report.linears, *report.models]
    rows = []
    for limit in Limit:
        found = [run.limits.rates[limit] for run in runs if limit in run.limits.rates]
        if found:
            middle = f"{median(found):.1f} {limit.unit}"
            rows.append([limit.value, middle, f"{min(found):.1f} - {max(found):.1f}"])
    return Table("The machine's limits, over the whole run", ["limit", "median", "range"], rows)


def kernels_of(runs: list[LinearRun]) -> list[Kernel]:
    """Those that any of the runs has, in the order of the tables."""
    return [kernel for kernel in Kernel if any(run.row(kernel) for run in runs)]


def shapes_table(report: Report, m: int) -> Table:
    """Every shape at one M: our speeds beside the limits, and how many times faster we are than others."""
    runs = [run for run in report.linears if run.m == m]
    kernels = kernels_of(runs)
    ours, peers = ([kernel for kernel in kernels if kernel.is_ours is mine] for mine in (True, False))
    unit, limit = ("GB/s", "of read") if m < MANY_ROWS else ("GFLOP/s", "of peak")
    headings = ["N x K", *(head for kernel in ours for head in (f"{kernel.value} {unit}", limit)), "w3 over w4"]
    headings += [f"w4 over {kernel.value}" for kernel in peers]
    rows = []
    for run in runs:
        four, three = run.row(Kernel.W4).taken, run.row(Kernel.W3).taken
        cells = [str(run.shape)]
        for kernel in ours:
            speed = run.speed(run.row(kernel))
            rate, share = (speed.gb_s, speed.of_read) if m < MANY_ROWS else (speed.gflop_s, speed.of_peak)
            cells += [f"{rate:.3g}", f"{share:.2f}"]
        rows.append([*cells, faster(three, four), *(faster(four, run.row(peer).taken) for peer in peers)])
    return Table(f"M = {m}: speed, and how many times faster than another", headings, rows)


def faster(one: Timed, other: Timed) -> str:
    """How many times faster the one is than the other."""
    return f"{other.seconds / one.seconds:.2f}x"


def sweep_table(report: Report) -> Table:
    """Microseconds over M on the shape that was measured at the most M; without rows for a single M."""
    runs = report.sweep()
    kernels = kernels_of(runs)
    rows = [[str(run.m), *(f"{run.row(kernel).taken.seconds * 1e6:,.0f}" for kernel in kernels)] for run in runs]
    shape = runs[0].shape if runs else ""
    headings = ["M", *(kernel.value for kernel in kernels)]
    return Table(f"Microseconds of one {shape} matmul on M rows", headings, rows if len(rows) > 1 else [], texts=0)


def models_table(report: Report) -> Table:
    def cells(run: ModelRun, row: ModelRow) -> list[str]:
        decode, prefill, rival = run.decode(row), run.prefill(row), run.rival()
        compared = rival is not None and rival is not row
        return [
            run.model,
            str(row.way),
            f"{1 / row.token.seconds:.1f}",
            f"{row.token.spread:.0%}",
            f"{decode.of_read:.2f}",
            faster(row.token, rival.token) if compared else "",
            f"{run.prompt_tokens / row.prompt.seconds:.0f}",
            f"{row.prompt.spread:.0%}",
            f"{prefill.of_peak:.2f}",
            faster(row.prompt, rival.prompt) if compared else "",
        ]

    headings = ["model", "run by", "decode tok/s", "spread", "of read", "over llama.cpp"]
    headings += ["prefill tok/s", "spread", "of peak", "over llama.cpp"]
    prompts = ", ".join(str(count) for count in sorted({run.prompt_tokens for run in report.models}))
    title = f"Whole models: a prompt of {prompts} tokens, then one token at a time"
    return Table(title, headings, [cells(run, row) for run in report.models for row in run.rows], texts=2)


def starts_table(report: Report) -> Table:
    def cells(model: str, row: ModelRow) -> list[str]:
        start = row.start
        sizes = start.weight_bytes, start.cache_bytes, start.runtime_bytes, start.held_bytes, start.peak_bytes
        return [
            model,
            str(row.way),
            f"{start.first_token_s:.2f}",
            f"{start.load_s:.2f}",
            f"{start.load_gb_s:.2f}",
            f"{start.new_memory_gb_s:.2f}",
            *(f"{size / 1e6:,.0f}" for size in sizes),
            f"{start.peak_over_needed:.2f}",
        ]

    headings = ["model", "run by", "first token s", "load s", "load GB/s", "new memory GB/s"]
    headings += ["weights MB", "KV MB", "runtime MB", "held MB", "peak MB", "peak / (weights + KV)"]
    title = "From the start of the process to the first token, files in the disk cache; and memory"
    return Table(title, headings, [cells(run.model, row) for run in report.models for row in run.rows], texts=2)
