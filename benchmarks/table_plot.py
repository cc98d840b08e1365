"""Perplexity against what it costs, one named point a row; no name lies over another or over a point."""

from pathlib import Path

COLOURS = {"float": "#1b1e23", "torchao's recipes": "#efb118", "4 bits": "#4269d0", "3 bits": "#ff725c"}
# Where a name may stand: how far from its point, in points, the nearest first. If not beside it, a line leads there.
BESIDE = [(7, 0), (-7, 0)]
PLACES = BESIDE + [
    (reach * x, reach * y)
    for reach in (14, 22, 32, 44, 58, 74, 92)
    for x, y in ((1, 0.5), (1, -0.5), (0, 1), (0, -1), (1, 1), (1, -1), (1, 0), (-1, 0.5), (-1, -0.5), (-1, 0))
]


def plot(label: str, values: list[float], points: list[tuple[str, str, float]], file: Path) -> None:
    """points: name, family and perplexity of each value; the format is that of the file's name."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "run_awq"  # the same figures make the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for family, colour in COLOURS.items():
        chosen = [(x, p[2]) for x, p in zip(values, points, strict=True) if p[1] == family]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), color=colour, label=family, zorder=3)
    axes.set(xlabel=label, ylabel="perplexity (lower is better)")
    axes.margins(0.18)
    axes.grid(color="#e4e6ea")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=len(COLOURS))
    _name_points(figure, axes, values, points)
    metadata = {"Date": None} if file.suffix == ".svg" else {}
    figure.savefig(file, bbox_inches="tight", dpi=120, metadata=metadata)
    pyplot.close(figure)


def _name_points(figure, axes, values: list[float], points: list[tuple[str, str, float]]) -> None:
    """Each name, from the top down, at the first place where it touches nothing that is there already."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    marks = axes.transData.transform([(x, point[2]) for x, point in zip(values, points, strict=True)])
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for x, (name, family, perplexity) in sorted(zip(values, points, strict=True), key=lambda named: -named[1][2]):
        for right, up in PLACES:
            text = axes.annotate(
                name,
                (x, perplexity),
                (right, up),
                textcoords="offset points",
                fontsize=8,
                color="#1b1e23",
                ha="left" if right > 0 else "right" if right < 0 else "center",
                va="bottom" if up > 0 else "top" if up < 0 else "center",
                arrowprops=None
                if (right, up) in BESIDE
                else dict(arrowstyle="-", color=COLOURS[family], lw=0.6, shrinkA=0, shrinkB=2),
            )
            text.update_positions(figure.canvas.get_renderer())
            box = Text.get_window_extent(text).padded(1)  # without the line to the point
            inside = axes.bbox.padded(4)
            if (
                not any(box.overlaps(other) for other in taken)
                and inside.contains(*box.p0)
                and inside.contains(*box.p1)
            ):
                break
            if (right, up) != PLACES[-1]:
                text.remove()
        taken.append(box)
