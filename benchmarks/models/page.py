"""The table as docs/models.md has it."""

import re
from collections import Counter
from collections.abc import Sequence

from benchmarks.docs import DOCS, between
from benchmarks.models.record import Outcome, Record, Report, Way
from benchmarks.models.table import verdict
from benchmarks.models.tiny import Row
from benchmarks.table import Table

PAGE = DOCS / "models.md"
BEGIN, END = "<!-- begin: python -m benchmarks.models --docs -->", "<!-- end -->"
HEADINGS = ["type", "result", "edges", "runs on", "stays float", "float32 off by", "bfloat16 off by"]


def write_page(report: Report) -> None:
    """Put totals and tables between the two markers of docs/models.md."""
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, markdown(report)), encoding="utf-8")


def markdown(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    rows = {record.name: Row.named(record.name) for record in report.records}
    types = [record for record in report.records if rows[record.name].variant is None]
    wrappers = [record for record in report.records if rows[record.name].wrapper]
    variants = [record for record in report.records if record not in types and record not in wrappers]
    parts = [f"{versions}; {len(types)} types: {totals(types)}."]
    for title, records in (("Types", types), ("Variants", variants), ("Models with a tower for pictures", wrappers)):
        if records:
            parts.append(f"**{title}**\n\n{Table(title, HEADINGS, list(map(row, records)), texts=5).markdown()}")
    return "\n\n".join(parts)


def totals(records: Sequence[Record]) -> str:
    """How many rows came to each result, the most first."""
    counts = Counter(verdict(record).partition(":")[0] for record in records)
    return ", ".join(f"{count} {said}" for said, count in counts.most_common())


def row(record: Record) -> list[str]:
    """The cells of one row: of the way with AWQ where that works, of rounding alone else."""
    said = _cell(re.sub(r" \[[^\[\]]*\]$", "", verdict(record)))  # where in the code is for the terminal
    shown = _shown(record)
    if shown is None:
        return [f"`{record.name}`", said, *[""] * (len(HEADINGS) - 2)]
    exact = [check.worst for check in shown.checks if check.exact and check.worst is not None]
    rounded = max((check for check in shown.checks if not check.exact), key=lambda check: check.median or 0.0)
    return [
        f"`{record.name}`", said, edges(shown), "the fused decoder" if shown.fused else "its modules", stays(shown),
        f"{max(exact):.0e}", f"{rounded.median:.3f} ({rounded.noise:.3f})",
    ]  # fmt: skip


def _shown(record: Record) -> Way | None:
    working = [way for way in record.ways if way.outcome is Outcome.WORKS and way.checks]
    return next((way for way in working if way.awq == "run"), working[0] if working else None)


def edges(way: Way) -> str:
    """Where the edges of its kinds of blocks came from: alike, or with how many blocks."""
    found: Counter[str] = Counter()
    for kind in way.blocks:
        found[kind.found] += kind.count
    if way.awq != "run" or not found:
        return ""
    return next(iter(found)) if len(found) == 1 else ", ".join(f"{name} ({count})" for name, count in found.items())


def stays(way: Way) -> str:
    """The share of the decoder's weights, and the reasons."""
    if not way.kept:
        return ""
    reasons = dict.fromkeys(left.reason for left in way.kept)
    share = "<1%" if way.kept_share < 0.005 else f"{way.kept_share:.0%}"
    return _cell(f"{share}: {', '.join(reasons)}")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", r"\<")
