"""What fuzzing came to, kept from run to run, and as docs/reliability.md has it."""

import json
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from benchmarks.docs import DOCS, between
from benchmarks.table import Table
from tests.fuzz.readers import READERS
from tests.fuzz.stops import STOPS

PAGE = DOCS / "reliability.md"
BEGIN, END = "<!-- begin: python -m tests.fuzz --docs -->", "<!-- end -->"
# Ways to end that hold, as the columns of the two tables.
READ = {"taken": "taken", "refused": "refused"}
STOPPED = {"was done": "done before", "gone on with": "gone on with", "begun again": "begun again"}


@dataclass(frozen=True)
class Result:
    """Of one reader, or of one way to be stopped. ends: how many inputs or stops ended how; seconds: it ran for."""

    name: str
    ends: dict[str, int]
    seconds: float
    first_seed: int
    commit: str
    day: str

    @classmethod
    def now(cls, name: str, ends: Counter, seconds: float, first_seed: int) -> "Result":
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True, cwd=DOCS).stdout.strip()
        return cls(name, dict(ends), round(seconds, 1), first_seed, commit or "?", date.today().isoformat())

    @property
    def tried(self) -> int:
        return sum(self.ends.values())


def remember(file: Path, result: Result) -> None:
    """Put a result into the file, in the place of an earlier one of that name."""
    kept = {each.name: each for each in results(file)} | {result.name: result}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([asdict(each) for each in kept.values()], indent=1) + "\n", encoding="utf-8")


def results(file: Path) -> list[Result]:
    return [Result(**each) for each in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def write_page(found: list[Result]) -> None:
    """Put the tables between the two markers of docs/reliability.md."""
    PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, markdown(found)), encoding="utf-8")


def markdown(found: list[Result]) -> str:
    order = [*READERS, *STOPS]
    found = sorted(found, key=lambda each: order.index(each.name))
    readers = [each for each in found if each.name in READERS]
    stops = [each for each in found if each.name in STOPS]
    tables = (_table("reader", "inputs", READ, readers), _table("stopped by", "stops", STOPPED, stops))
    return "\n\n".join((*(table.markdown() for table in tables if table.rows), _said(found)))


def _table(first: str, second: str, ends: dict[str, str], found: list[Result]) -> Table:
    headings = [first, second, *ends.values(), "no memory", "held", "seconds"]
    return Table("", headings, [_row(each, ends) for each in found])


def _row(result: Result, ends: dict[str, str]) -> list[str]:
    counts = Counter(result.ends)
    held = result.tried - counts["fault"]
    cells = [counts[end] for end in (*ends, "memory")]
    return [result.name, f"{result.tried:,}", *(f"{cell:,}" for cell in cells), f"{held:,}", f"{result.seconds:,.0f}"]


def _said(found: list[Result]) -> str:
    runs: dict[tuple[str, str], list[Result]] = {}
    for each in found:
        runs.setdefault((each.day, each.commit), []).append(each)
    firsts = Counter(each.first_seed for each in found)
    usual = max(firsts, key=firsts.get)
    others = "".join(f", of {each.name} from {each.first_seed}" for each in found if each.first_seed != usual)
    said = [
        f"{sum(each.seconds for each in some) / 60:.0f} minutes on {day} at `{commit}`"
        + (f" ({', '.join(each.name for each in some)})" if len(runs) > 1 else "")
        for (day, commit), some in runs.items()
    ]
    return f"Run for {'; '.join(said)}. Seeds from {usual}{others}."
