"""The picture of a run: weight bytes and floating-point operations a second over M, both under the machine's roofs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.cpu.report import Kernel, Limit, Limits, LinearRun, Machine, Report, Speed


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    label: str


# Okabe and Ito's colours, which the colour-blind tell apart (jfly.uni-koeln.de/color), and a marker each.
STYLES = {
    Kernel.W4: Style("#0072B2", "o", "ours, 4 bits"),
    Kernel.W3: Style("#009E73", "s", "ours, 3 bits"),
    Kernel.ORT_INT8: Style("#D55E00", "^", "ORT int8 (level 4)"),
    Kernel.ORT_FP32: Style("#E69F00", "v", "ORT fp32 (level 1)"),
    Kernel.INT4PACK: Style("#CC79A7", "D", "torch int4pack"),
    Kernel.DENSE: Style("#666666", "P", "torch bf16, dense"),
}
ROOF = "#222222"
APART = 0.052  # between two labels, of the height of the picture


@dataclass(frozen=True)
class Panel:
    """One of the two. value: what is drawn of a speed; at: the M at whose side the lines are named, `side` of them."""

    title: str
    value: Callable[[Speed], float]
    at: int
    side: str

    def points(self, runs: list[LinearRun], kernel: Kernel) -> dict[int, float]:
        """Value by M."""
        rows = ((run, run.row(kernel)) for run in runs)
        return {run.m: self.value(run.speed(row)) for run, row in rows if row is not None}


def draw(report: Report, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg; nothing where the report has no sweep over M."""
    runs = report.sweep()
    if len(runs) < 2:
        return
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cpu", "font.size": 10})
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 5.6), layout="constrained")
    first, last = runs[0].m, runs[-1].m
    read = Panel("weights read, GB/s", lambda speed: speed.gb_s, first, "right")
    done = Panel("arithmetic, GFLOP/s", lambda speed: speed.gflop_s, last, "left")
    _draw_lines(left, runs, read)
    _draw_lines(right, runs, done)
    _draw_roofs(left, right, runs)
    left.set_ylim(0)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    room = (last / first) ** 0.42  # for the names of the lines
    left.set_xlim(first / room, last * 1.6)
    right.set_xlim(first / 1.6, last * room)
    _name_lines(left, runs, read)
    _name_lines(right, runs, done)
    figure.suptitle(_title(runs[0], report.machine), fontsize=11.5)
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{stem}.png", dpi=150)
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    plt.close(figure)


def _title(run: LinearRun, machine: Machine) -> str:
    return (
        f"One {run.shape} linear layer on M rows of activations: {machine.processor}, "
        f"{machine.threads} threads (dashed: the machine's limits for 4 bits)"
    )


def _draw_lines(axes, runs: list[LinearRun], panel: Panel) -> None:
    for kernel, style in STYLES.items():
        points = panel.points(runs, kernel)
        axes.plot(
            list(points),
            list(points.values()),
            color=style.colour,
            marker=style.marker,
            linewidth=2.6 if kernel.is_ours else 1.5,
            markersize=6 if kernel.is_ours else 5,
            zorder=4 if kernel.is_ours else 3,
        )
    ms = [run.m for run in runs]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ms, [str(m) for m in ms])
    axes.minorticks_off()
    axes.set_xlabel("M")
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=11)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def middle_limits(runs: list[LinearRun]) -> Limits:
    """Medians over the runs."""
    return Limits({limit: median(run.limits.rates[limit] for run in runs) for limit in runs[0].limits.rates})


def roof(runs: list[LinearRun], m: float) -> Speed:
    """The speed on M rows of a 4-bit layer that takes what its bytes or its operations take at the machine's limits."""
    limits, shape = middle_limits(runs), runs[0].shape
    size, operations = runs[0].row(Kernel.W4).weight_bytes, 2 * m * shape.n * shape.k
    seconds = max(size / limits.bandwidth, operations / limits.peak) / 1e9
    return limits.speed(size, operations, seconds)


def _draw_roofs(left, right, runs: list[LinearRun]) -> None:
    first, last = runs[0].m, runs[-1].m
    ms = [first * (last / first) ** (i / 100) for i in range(101)]
    roofs, limits = [roof(runs, m) for m in ms], middle_limits(runs)
    dashed = dict(color=ROOF, linestyle=(0, (5, 3)), linewidth=1.4, zorder=2)
    left.plot(ms, [speed.gb_s for speed in roofs], **dashed)
    right.plot(ms, [speed.gflop_s for speed in roofs], **dashed)
    words = dict(xytext=(0, 5), textcoords="offset points", va="bottom", color=ROOF, fontsize=9.5)
    text = f"{Limit.READ.value} bandwidth, {limits.bandwidth:.0f} GB/s"
    left.annotate(text, (first, limits.bandwidth), ha="left", **words)
    text = f"{limits.fastest.value} peak, {limits.peak:.0f} GFLOP/s"
    right.annotate(text, (last, limits.peak), ha="right", **words)


def _name_lines(axes, runs: list[LinearRun], panel: Panel) -> None:
    """Name the lines at their end, pushed apart where they would overlap."""
    lines = {kernel: panel.points(runs, kernel) for kernel in STYLES}
    ends = {kernel: points[panel.at] for kernel, points in lines.items() if panel.at in points}
    to_axes = axes.transScale + axes.transLimits
    heights = {kernel: to_axes.transform((panel.at, end))[1] for kernel, end in ends.items()}
    kernels = sorted(heights, key=heights.get)
    x = to_axes.transform((panel.at, 1))[0]
    for kernel, height in zip(kernels, pushed_apart([heights[kernel] for kernel in kernels]), strict=True):
        style = STYLES[kernel]
        axes.annotate(
            style.label,
            (x, heights[kernel]),
            (x + (-0.035 if panel.side == "right" else 0.035), height),
            xycoords="axes fraction",
            ha=panel.side,
            va="center",
            color=style.colour,
            fontweight="bold" if kernel.is_ours else "normal",
            arrowprops=dict(arrowstyle="-", color=style.colour, linewidth=0.7, shrinkA=1, shrinkB=4),
        )


def pushed_apart(heights: list[float]) -> list[float]:
    """Ascending heights moved as little as leaves APART between neighbours: runs that touch are centred together."""
    runs: list[tuple[float, int]] = []  # centre and count
    for height in heights:
        runs.append((height, 1))
        while len(runs) > 1 and runs[-1][0] - runs[-2][0] < APART * (runs[-1][1] + runs[-2][1]) / 2:
            (low, n), (high, k) = runs[-2], runs.pop()
            runs[-1] = ((low * n + high * k) / (n + k), n + k)
    return [centre + APART * (i - (count - 1) / 2) for centre, count in runs for i in range(count)]
