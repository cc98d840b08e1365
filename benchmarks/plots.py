"""The picture of a run: weight bytes and floating-point operations a second over M, both under the machine's roofs."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.rows import Report, Row, limits_of
from benchmarks.tables import short, sweep_of

# Okabe and Ito's colours, which the colour-blind tell apart (jfly.uni-koeln.de/color), and a marker each.
STYLES = {
    "w4": ("#0072B2", "o"),
    "w3": ("#009E73", "s"),
    "ORT level 4": ("#D55E00", "^"),
    "ORT level 1": ("#E69F00", "v"),
    "torch int4pack": ("#CC79A7", "D"),
    "torch bf16": ("#666666", "P"),
}
LABELS = {
    "w4": "ours, 4 bits",
    "w3": "ours, 3 bits",
    "ORT level 4": "ORT int8 (level 4)",
    "ORT level 1": "ORT fp32 (level 1)",
}
LABELS |= {"torch int4pack": "torch int4pack", "torch bf16": "torch bf16, dense"}
ROOF = "#222222"
APART = 0.052  # between two labels, of the height of the picture


def draw(report: Report, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg; nothing where the report has no sweep over M."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cpu", "font.size": 10})
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = sweep_of(report)
    if len({row.m for row in rows}) < 2:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 5.6), layout="constrained")
    _panel(left, report, rows, "weights read, GB/s", lambda row: row.gb_s)
    _panel(right, report, rows, "arithmetic, GFLOP/s", lambda row: row.gflop_s)
    left.set_ylim(0)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    ms = sorted({row.m for row in rows})
    left.set_xlim(ms[0] / (ms[-1] / ms[0]) ** 0.42, ms[-1] * 1.6)
    right.set_xlim(ms[0] / 1.6, ms[-1] * (ms[-1] / ms[0]) ** 0.42)
    _label(left, rows, ms[0], lambda row: row.gb_s, "right")
    _label(right, rows, ms[-1], lambda row: row.gflop_s, "left")
    machine = report.machine
    figure.suptitle(
        f"One {rows[0].n} x {rows[0].k} linear layer on M rows of activations: {machine['processor']}, "
        f"{machine['threads']} threads (dashed: the machine's limits for 4 bits)",
        fontsize=11.5,
    )
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{stem}.png", dpi=150)
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    plt.close(figure)


def _panel(axes, report: Report, rows: list[Row], title: str, value: Callable[[Row], float]) -> None:
    ms = sorted({row.m for row in rows})
    for name, (colour, marker) in STYLES.items():
        line = [row for row in rows if short(row.impl) == name]
        ours = bool(line) and line[0].is_ours
        axes.plot(
            [row.m for row in line],
            [value(row) for row in line],
            color=colour,
            marker=marker,
            linewidth=2.6 if ours else 1.5,
            markersize=6 if ours else 5,
            zorder=4 if ours else 3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ms, [str(m) for m in ms])
    axes.minorticks_off()
    axes.set_xlabel("M")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _roof(axes, report, rows, value)


def _roof(axes, report: Report, rows: list[Row], value: Callable[[Row], float]) -> None:
    """The 4-bit layer's time can be no less than its bytes or its operations take at the machine's limits."""
    four = next(row for row in rows if short(row.impl) == "w4")
    machine = [row for row in report.rows if row.impl == "machine" and (row.n, row.k) == (four.n, four.k)]
    names = {row.what for row in machine}
    medians = []
    for name in names:
        same = [row for row in machine if row.what == name]
        medians.append(
            Row(**{**vars(same[0]), **{f: median(getattr(r, f) for r in same) for f in ("gb_s", "gflop_s")}})
        )
    bandwidth, peak = limits_of(medians)
    weight, products = four.gb_s * four.seconds, 2 * four.n * four.k / 1e9
    first, last = four.m, rows[-1].m
    exact = [first * (last / first) ** (i / 100) for i in range(101)]
    at_least = [max(weight / bandwidth, products * m / peak) for m in exact]
    is_bytes = value(four) == four.gb_s
    bound = [(weight if is_bytes else products * m) / seconds for m, seconds in zip(exact, at_least, strict=True)]
    axes.plot(exact, bound, color=ROOF, linestyle=(0, (5, 3)), linewidth=1.4, zorder=2)
    kind = max(medians, key=lambda row: row.gflop_s).what.removeprefix("roof ")
    if is_bytes:
        text, at = f"read bandwidth, {bandwidth:.0f} GB/s", (exact[0], bandwidth)
    else:
        text, at = f"{kind} peak, {peak:.0f} GFLOP/s", (exact[-1], peak)
    side = "left" if is_bytes else "right"
    axes.annotate(text, at, (0, 5), textcoords="offset points", ha=side, va="bottom", color=ROOF, fontsize=9.5)


def _label(axes, rows: list[Row], m: int, value: Callable[[Row], float], side: str) -> None:
    """Name the lines at their end, pushed apart where they would overlap."""
    ends = [(short(row.impl), value(row)) for row in rows if row.m == m and short(row.impl) in STYLES]
    to_axes = axes.transScale + axes.transLimits
    heights = {name: to_axes.transform((m, height))[1] for name, height in ends}
    names = sorted(heights, key=heights.get)
    for name, height in zip(names, _spread([heights[name] for name in names]), strict=True):
        x, text_x = to_axes.transform((m, 1))[0], (-0.035 if side == "right" else 0.035)
        axes.annotate(
            LABELS[name],
            (x, heights[name]),
            (x + text_x, height),
            xycoords="axes fraction",
            ha=side,
            va="center",
            color=STYLES[name][0],
            fontweight="bold" if name in ("w4", "w3") else "normal",
            arrowprops=dict(arrowstyle="-", color=STYLES[name][0], linewidth=0.7, shrinkA=1, shrinkB=4),
        )


def _spread(heights: list[float]) -> list[float]:
    """Ascending heights moved as little as leaves APART between neighbours: runs that touch are centred together."""
    runs: list[list[float]] = []  # [centre, count]
    for height in heights:
        runs.append([height, 1])
        while len(runs) > 1 and runs[-1][0] - runs[-2][0] < APART * (runs[-1][1] + runs[-2][1]) / 2:
            (low, n), (high, k) = runs[-2], runs.pop()
            runs[-1] = [(low * n + high * k) / (n + k), n + k]
    return [centre + APART * (i - (count - 1) / 2) for centre, count in runs for i in range(int(count))]
