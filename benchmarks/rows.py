"""What the benchmarks report: one row for a measurement, one for a start; and reading and writing them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles

from benchmarks.roofs import Roof


@dataclass
class Row:
    """One measurement, a median over the rounds; `spread` is (90th - 10th percentile) / median.

    what: `linear`, `roof NAME`, `decode MODEL` or `prefill MODEL`; m: rows of activations or tokens read at a time;
    n, k: of the weight, 0 for a model; seconds: of one matmul, one token (decode) or one prompt (prefill).
    gb_s, gflop_s: what has to be read and multiplied at least, over that time. Shares are of the limits taken in the
    same rounds; ratio_to: another's seconds over this one's.
    """

    what: str
    impl: str
    bits: int
    group_size: int
    m: int
    n: int
    k: int
    seconds: float
    spread: float
    gb_s: float
    gflop_s: float
    share_of_bandwidth: float
    share_of_peak: float
    ratio_to: dict[str, float] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.impl.startswith("cpu/")


@dataclass
class Start:
    """From the start of a process to its first token, the files in the disk cache; and what it then holds.

    first_token_s: after a prompt of 16 tokens; medians over `starts`. load_s: reading the file and packing it.
    new_memory_gb_s: what a process beside it got, writing as many bytes once, before each start.
    weight_bytes: as they lie in memory; cache_bytes: keys and values; runtime_bytes: resident before loading.
    """

    model: str
    impl: str
    starts: int
    first_token_s: float
    load_s: float
    new_memory_gb_s: float
    stored_bytes: int
    weight_bytes: int
    cache_bytes: int
    runtime_bytes: int
    peak_bytes: int
    held_bytes: int


@dataclass
class Report:
    """Everything that a run found. machine: what it ran on, with which versions."""

    machine: dict[str, str | int]
    rows: list[Row] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> "Report":
        """Raises `ValueError` for what is no report, or one by another version, whose rows had other fields."""
        try:
            given = json.loads(path.read_text())
            rows, starts = [Row(**row) for row in given["rows"]], [Start(**start) for start in given["starts"]]
            return Report(given["machine"], rows, starts)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report that this version wrote: {type(error).__name__} {error}") from error


def spread(times: list[float]) -> float:
    deciles = quantiles(times, n=10)
    return (deciles[8] - deciles[0]) / median(times)


def roof_rows(limits: list[Roof], times: list[list[float]], m: int, n: int, k: int) -> list[Row]:
    """The limits as rows, the better of two of one name; (m, n, k) says whose rounds they were taken in."""
    best: dict[str, Row] = {}
    for roof, taken in zip(limits, times, strict=True):
        seconds = median(taken)
        rate, is_read = roof.amount / seconds / 1e9, roof.name == "read"
        sizes = m, n, k, seconds, spread(taken)
        row = Row(f"roof {roof.name}", "machine", 0, 0, *sizes, rate * is_read, rate * (not is_read), 1, 1)
        if roof.name not in best or best[roof.name].seconds > seconds:
            best[roof.name] = row
    return list(best.values())


def limits_of(rows: list[Row]) -> tuple[float, float]:
    """(bandwidth, peak) of a list of roof rows, GB/s and GFLOP/s: the peak of the fastest kind of products."""
    rate = {row.what: row.gb_s + row.gflop_s for row in rows}
    return rate["roof read"], max(value for name, value in rate.items() if name != "roof read")


def compare(rows: list[Row]) -> list[Row]:
    """Fill in `ratio_to` among rows of one thing."""
    for row in rows:
        row.ratio_to = {other.impl: other.seconds / row.seconds for other in rows if other is not row}
    return rows
