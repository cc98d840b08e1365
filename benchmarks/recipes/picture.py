"""Divergence against what it costs, one named point a row; no name lies over another or over a point."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.recipes.rows import Family, Row

INK = "#1b1e23"
COLOURS = {
    Family.FLOAT: INK,
    Family.TORCHAO: "#efb118",
    Family.PEERS: "#6cc5b0",
    Family.FOUR_BITS: "#4269d0",
    Family.THREE_BITS: "#ff725c",
}
# Where a name may stand: how far from its point, in points, the nearest first. If not beside it, a line leads there.
BESIDE = [(7, 0), (-7, 0)]
PLACES = BESIDE + [
    (reach * x, reach * y)
    for reach in (14, 22, 32, 44, 58, 74, 92)
    for x, y in ((1, 0.5), (1, -0.5), (0, 1), (0, -1), (1, 1), (1, -1), (1, 0), (-1, 0.5), (-1, -0.5), (-1, 0))
]


@dataclass(frozen=True)
class Point:
    """x: what the row costs; y: its divergence from the float model, in nats a token."""

    row: Row
    x: float
    y: float


def draw(label: str, points: list[Point], file: Path) -> None:
    """label: of the x axis; the format is that of the file's name."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "run_awq"  # the same figures make the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for family, colour in COLOURS.items():
        chosen = [(point.x, point.y) for point in points if point.row.family is family]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), color=colour, label=family.value, zorder=3)
    axes.set(xlabel=label, ylabel="divergence, nats a token (lower is better)")
    axes.margins(0.18)
    axes.grid(color="#e4e6ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=len(COLOURS))
    figure.canvas.draw()
    _name_points(axes, points)
    metadata = {"Date": None} if file.suffix == ".svg" else {}
    figure.savefig(file, bbox_inches="tight", dpi=120, metadata=metadata)
    pyplot.close(figure)


def _name_points(axes, points: list[Point]) -> None:
    """Each name, from the top down, at the first place where it touches nothing that is there already."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    marks = axes.transData.transform([(point.x, point.y) for point in points])
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    inside = axes.bbox.padded(4)
    for point in sorted(points, key=lambda one: -one.y):
        for place in PLACES:
            text = _write(axes, point, place)
            box = Text.get_window_extent(text).padded(1)  # without the line to the point
            free = not any(box.overlaps(other) for other in taken)
            if free and inside.contains(*box.p0) and inside.contains(*box.p1):
                break
            if place != PLACES[-1]:
                text.remove()
        taken.append(box)


def _write(axes, point: Point, place: tuple[float, float]):
    right, up = place
    line = dict(arrowstyle="-", color=COLOURS[point.row.family], lw=0.6, shrinkA=0, shrinkB=2)
    text = axes.annotate(
        point.row.name,
        (point.x, point.y),
        place,
        textcoords="offset points",
        fontsize=8,
        color=INK,
        ha="left" if right > 0 else "right" if right < 0 else "center",
        va="bottom" if up > 0 else "top" if up < 0 else "center",
        arrowprops=None if place in BESIDE else line,
    )
    text.update_positions(axes.figure.canvas.get_renderer())
    return text
