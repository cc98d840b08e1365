"""A report as tables, for the terminal and for docs/cpu.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.kernels import MANY_ROWS
from benchmarks.rows import Report, Row, Start

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "cpu.md"
BEGIN, END = "<!-- begin: python -m benchmarks.cpu --docs -->", "<!-- end -->"
TABLE_ROWS = (1, 128, 512)


@dataclass(frozen=True)
class Table:
    """title: what the numbers are; the first `texts` columns are words."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    texts: int = 1

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if i < self.texts else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rule = ["---"] * self.texts + ["---:"] * (len(self.headings) - self.texts)
        lines = [" | ".join(cells) for cells in (self.headings, rule, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(f"| {line} |" for line in lines)


def short(impl: str) -> str:
    """An implementation's name without what is the same for all of ours."""
    return impl.split(" ", 1)[1] if impl.startswith("cpu/") else impl.replace("onnxruntime", "ORT")


def tables(report: Report) -> Iterator[Table]:
    """Every table that the report has rows for."""
    for make in (_roofs, _shapes, _sweep, _models, _starts):
        yield from (table for table in make(report) if table.rows)


def show(report: Report) -> None:
    console = Console(width=170)
    for table in tables(report):
        console.print(table.rich())


def write_docs(report: Report) -> None:
    """Put the tables between the two markers of docs/cpu.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    machine = report.machine
    said = f"{machine['processor']}, {machine['threads']} threads, instruction set {machine['instruction set']}; " + (
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    )
    picture = "![Weight bytes and operations a second over M, below the machine's limits](cpu-kernels.svg)"
    parts = [said + ".", *[picture] * bool(sweep_of(report)), *(table.markdown() for table in tables(report))]
    PAGE.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after)


def _roofs(report: Report) -> Iterator[Table]:
    names = list(dict.fromkeys(row.what for row in report.rows if row.impl == "machine"))
    rows = []
    for name in names:
        found = sorted(row.gb_s + row.gflop_s for row in report.rows if row.what == name)
        unit = "GB/s" if name == "roof read" else "GFLOP/s"
        middle = found[len(found) // 2]
        rows.append([name.removeprefix("roof "), f"{middle:.1f} {unit}", f"{found[0]:.1f} - {found[-1]:.1f}"])
    yield Table("The machine's limits, over the whole run", ["limit", "median", "range"], rows)


def _linear(report: Report) -> list[Row]:
    return [row for row in report.rows if row.what == "linear"]


def _shapes(report: Report) -> Iterator[Table]:
    for m in TABLE_ROWS:
        rows = [row for row in _linear(report) if row.m == m]
        by_shape = {shape: list(group) for shape, group in groupby(rows, lambda row: (row.n, row.k))}
        unit, limit = ("GB/s", "of read") if m < MANY_ROWS else ("GFLOP/s", "of peak")
        names = list(dict.fromkeys(short(row.impl) for row in rows))
        ours = [name for name in names if name[0] == "w"]
        peers = [name for name in names if name not in ours]
        headings = ["N x K", *(h for name in ours for h in (f"{name} {unit}", limit)), "w3 over w4"]
        headings += [f"w4 over {name}" for name in peers]
        cells = []
        for (n, k), group in by_shape.items():
            row_of = {short(row.impl): row for row in group}
            cells.append([f"{n} x {k}"])
            for name in ours:
                row = row_of[name]
                speed, share = (row.gb_s, row.share_of_bandwidth) if m < MANY_ROWS else (row.gflop_s, row.share_of_peak)
                cells[-1] += [f"{speed:.3g}", f"{share:.2f}"]
            seconds = row_of["w4"].seconds
            cells[-1].append(f"{seconds / row_of['w3'].seconds:.2f}x")
            cells[-1] += [f"{row_of[name].seconds / seconds:.2f}x" for name in peers]
        yield Table(f"M = {m}: speed, and how many times faster than another", headings, cells)


def sweep_of(report: Report) -> list[Row]:
    """The rows of the shape that was measured at the most M; the last one of a pair counts."""
    rows = _linear(report)
    shapes = {(row.n, row.k) for row in rows}
    if not shapes:
        return []
    most = max(shapes, key=lambda shape: len({row.m for row in rows if (row.n, row.k) == shape}))
    found = {(row.impl, row.m): row for row in rows if (row.n, row.k) == most}
    return sorted(found.values(), key=lambda row: row.m)


def _sweep(report: Report) -> Iterator[Table]:
    rows = sweep_of(report)
    names = list(dict.fromkeys(row.impl for row in rows))
    cells = []
    for m, group in groupby(rows, lambda row: row.m):
        micros = {row.impl: row.seconds * 1e6 for row in group}
        cells.append([str(m), *(f"{micros[name]:,.0f}" if name in micros else "" for name in names)])
    if len(cells) > 1:
        title = f"Microseconds of one {rows[0].n} x {rows[0].k} matmul on M rows"
        yield Table(title, ["M", *map(short, names)], cells, texts=0)


def _models(report: Report) -> Iterator[Table]:
    rows = {(row.what, row.impl): row for row in report.rows if row.what.startswith(("decode ", "prefill "))}
    cells = []
    for (what, impl), row in rows.items():
        if not what.startswith("decode"):
            continue
        model = what.removeprefix("decode ")
        read = rows[f"prefill {model}", impl]
        llama = [next((r for i, r in each.ratio_to.items() if i.startswith("llama")), None) for each in (row, read)]
        over = [f"{ratio:.2f}x" if ratio else "" for ratio in llama]
        cells.append(
            [model, short(impl), f"{1 / row.seconds:.1f}", f"{row.spread:.0%}", f"{row.share_of_bandwidth:.2f}"]
        )
        cells[-1] += [
            over[0],
            f"{read.m / read.seconds:.0f}",
            f"{read.spread:.0%}",
            f"{read.share_of_peak:.2f}",
            over[1],
        ]
    headings = ["model", "run by", "decode tok/s", "spread", "of read", "over llama.cpp"]
    headings += ["prefill tok/s", "spread", "of peak", "over llama.cpp"]
    prompts = {row.m for (what, _), row in rows.items() if what.startswith("prefill")}
    title = f"Whole models: a prompt of {', '.join(map(str, sorted(prompts)))} tokens, then one token at a time"
    yield Table(title, headings, cells, texts=2)


def _starts(report: Report) -> Iterator[Table]:
    def cells(start: Start) -> list[str]:
        needed = start.weight_bytes + start.cache_bytes
        sizes = start.weight_bytes, start.cache_bytes, start.runtime_bytes, start.held_bytes, start.peak_bytes
        seconds = [
            f"{start.first_token_s:.2f}",
            f"{start.load_s:.2f}",
            f"{start.stored_bytes / start.load_s / 1e9:.2f}",
            f"{start.new_memory_gb_s:.2f}",
        ]
        megabytes = [f"{size / 1e6:,.0f}" for size in sizes]
        return [start.model, short(start.impl), *seconds, *megabytes, f"{start.peak_bytes / needed:.2f}"]

    headings = ["model", "run by", "first token s", "load s", "load GB/s", "new memory GB/s"]
    headings += ["weights MB", "KV MB", "runtime MB", "held MB", "peak MB", "peak / (weights + KV)"]
    title = "From the start of the process to the first token, files in the disk cache; and memory"
    yield Table(title, headings, [cells(start) for start in report.starts], texts=2)
