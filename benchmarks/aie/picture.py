"""Draws how a weight is cut for the array: an SVG of four panels.

    python -m benchmarks.aie.picture

rewrites docs/aie-tiling.svg. With `--check` it writes nothing and fails if the picture is out of date.
"""

from typing import NamedTuple

from benchmarks.aie.models import BITS, LLAMA_3
from benchmarks.docs import DOCS, keep
from qlinear.backends.aie.devices import PHX, ZIG_ZAG
from qlinear.backends.aie.tiling import Tiling, tile_matmul

_STRIPS = ("#4269d0", "#efb118", "#3ca951", "#ff725c")  # one colour for each column of the array
_INK, _PALE = "#1b1e23", "#6c7079"
_WIDTH, _HEIGHT = 980, 560


class Area(NamedTuple):
    """A rectangle; x and y are its upper left corner."""

    x: float
    y: float
    width: float
    height: float


class Style(NamedTuple):
    """How words look; anchor: which end of them stands at their x."""

    size: int = 12
    anchor: str = "start"
    fill: str = _INK
    weight: str = "normal"


_PLAIN = Style()
_CENTRED = Style(anchor="middle")
_NOTE = Style(fill=_PALE)


def draw(tiling: Tiling, layer: str) -> str:
    """The picture of a tiling on phx; `layer` is what the title calls the weight."""
    volume, (rows, columns) = tiling.sub_volume, tiling.grid
    title = f"{layer}: a weight of K x N = {tiling.k} x {tiling.n} on {tiling.device.name}, group {tiling.kernel_group}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}">',
        '<defs><pattern id="padding" width="6" height="6" patternTransform="rotate(45)" '
        'patternUnits="userSpaceOnUse"><path d="M0 0V6" stroke="#9aa0a8" stroke-width="1.5"/></pattern></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(24, 32, title, Style(17, weight="bold")),
        *_heading(24, 68, "1  Cut into kernel blocks", f"{tiling.k_blocks * tiling.n_blocks} dispatches a token"),
        *_blocks(tiling, Area(60, 122, 120, 250)),
        *_heading(290, 68, "2  A block is a grid of sub-volumes", f"{rows} x {columns}, stored in the order shown"),
        *_sub_volumes(tiling, 350, 122),
        *_heading(700, 68, "3  Each core is fed its own", "a strip to each column of the array"),
        *_array(730, 122),
        *_heading(24, 448, "4  A sub-volume in bytes", f"{volume.k} x {volume.n} weights, {volume.size} bytes"),
        *_bytes(tiling, Area(24, 492, _WIDTH - 48, 34)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def place(row: int, column: int, rows: int) -> int:
    """Where the buffer of a block of `rows` rows has a sub-volume: strips of columns, one after the other."""
    return row * ZIG_ZAG + column % ZIG_ZAG + column // ZIG_ZAG * rows * ZIG_ZAG


def _text(x: float, y: float, words: object, style: Style = _PLAIN) -> str:
    size, anchor, fill, weight = style
    look = f'font-size="{size}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {look}>{words}</text>'


def _box(area: Area, fill: str, opacity: float = 1.0, line: str = "#fff") -> str:
    return (
        f'<rect x="{area.x:g}" y="{area.y:g}" width="{area.width:g}" height="{area.height:g}" fill="{fill}" '
        f'fill-opacity="{opacity:g}" stroke="{line}"/>'
    )


def _heading(x: float, y: float, title: str, subtitle: str) -> list[str]:
    return [_text(x, y, title, Style(14, weight="bold")), _text(x, y + 19, subtitle, _NOTE)]


def _notes(x: float, y: float, *lines: str) -> list[str]:
    return [_text(x, y + 16 * i, line, _NOTE) for i, line in enumerate(lines)]


def _blocks(tiling: Tiling, area: Area) -> list[str]:
    """The padded weight to scale along K, one outline a block, the padding hatched."""
    x, y, width, height = area
    tall = height / tiling.k_blocks
    live = height * tiling.k / (tiling.k_blocks * tiling.kernel.k)
    drawn = [
        _text(x + width / 2, y - 8, f"N = {tiling.kernel.n}", _CENTRED),
        _box(Area(x, y, width, live), "#dbe3f8"),
        _box(Area(x, y + live, width, height - live), "url(#padding)"),
    ]
    for block in range(tiling.k_blocks):
        top = y + block * tall
        drawn.append(_box(Area(x, top, width, tall), "none", line=_INK))
        drawn.append(_text(x + width / 2, top + 22, f"K block {block}", _CENTRED))
        drawn.append(_text(x + width + 6, top + tall, f"K = {(block + 1) * tiling.kernel.k}", _NOTE))
    if live < height:
        drawn.append(_text(x + width + 6, y + live, f"K = {tiling.k}", _NOTE))
    padding = f"{1 - tiling.useful:.0%} of the work is padding;"
    return [*drawn, *_notes(x, y + height + 22, padding, "the host adds the blocks in fp32")]


def _sub_volumes(tiling: Tiling, x: float, y: float) -> list[str]:
    """The first eight columns and some rows of a block's grid, each cell with its place in the buffer."""
    (rows, columns), k, n = tiling.grid, tiling.sub_volume.k, tiling.sub_volume.n
    wide, tall, drawn = 36, 30, []
    shown = [0, 1, 2, None, rows - 1]
    for column in range(2 * ZIG_ZAG):
        strip = column // ZIG_ZAG
        left = x + column * wide + strip * 10
        middle = left + wide / 2
        drawn.append(_text(middle, y - 8, f"c = {column}", Style(11, "middle")))
        for line, row in enumerate(shown):
            top = y + line * tall
            if row is None:
                drawn.append(_text(middle, top + 20, "...", Style(anchor="middle", fill=_PALE)))
                continue
            drawn.append(_box(Area(left, top, wide, tall), _STRIPS[strip], 0.55 if row == 0 else 0.25))
            drawn.append(_text(middle, top + 20, place(row, column, rows), _CENTRED))
    for line, label in enumerate(("bias", f"k 0-{k - 1}", f"k {k}-{2 * k - 1}", "", "last k")):
        drawn.append(_text(x - 6, y + line * tall + 20, label, Style(11, "end", _PALE)))
    return drawn + _notes(
        x,
        y + len(shown) * tall + 24,
        f"Each c is {n} columns of the weight; {columns - 8} more c",
        "follow. Four make a strip, stored row by row:",
        "what one column of the array reads in turn.",
    )


def _array(x: float, y: float) -> list[str]:
    """The 4x4 cores, each labelled with the column of sub-volumes it works on."""
    side, step, drawn = 50, 54, []
    for column, colour in enumerate(_STRIPS):
        left = x + column * step
        middle = left + side / 2
        for row in range(4):
            top = y + row * step
            drawn.append(_box(Area(left, top, side, side), colour, 0.25))
            drawn.append(_text(middle, top + 22, f"c = {4 * column + row}", _CENTRED))
            drawn.append(_text(middle, top + 38, "8 rows", Style(10, "middle", _PALE)))
        drawn.append(_text(middle, y - 8, f"strip {column}", Style(11, "middle")))
    return drawn + _notes(
        x,
        y + 4 * step + 18,
        "All cores see the same 8 rows of x;",
        "a round covers 16 columns c,",
        "the next starts at c = 16.",
    )


def _bytes(tiling: Tiling, area: Area) -> list[str]:
    """The parts of a sub-volume side by side; widths are not to scale, the labels are exact."""
    volume, (x, y, width, height) = tiling.sub_volume, area
    ends = (volume.zeros_at, volume.scales_at, volume.codes_at, volume.size)
    parts = (
        ("zeros", "4 bits, row-major over (group, n)", "#dbe3f8", 0.22),
        ("scales", "bf16, row-major over (group, n)", "#b9c8f0", 0.26),
        ("codes", "4 bits, row-major over (k, n), the even n in the low half", "#8fa8e8", 0.52),
    )
    drawn = []
    for (name, what, colour, share), start, end in zip(parts, ends[:-1], ends[1:], strict=True):
        wide = share * width
        drawn.append(_box(Area(x, y, wide, height), colour))
        drawn.append(_text(x + wide / 2, y + 22, f"{name}: {end - start} bytes", Style(12, "middle", weight="bold")))
        drawn.append(_text(x + 2, y + 50, what, Style(11, fill=_PALE)))
        drawn.append(_text(x + 2, y - 5, start, Style(11, fill=_PALE)))
        x += wide
    drawn.append(_text(x, y - 5, volume.size, Style(11, "end", _PALE)))
    return drawn


def main() -> None:
    tiling = tile_matmul(PHX, 1, LLAMA_3.intermediate, LLAMA_3.hidden, BITS, LLAMA_3.group_size)
    keep(DOCS / "aie-tiling.svg", draw(tiling, f"{LLAMA_3.name} down_proj"), "python -m benchmarks.aie.picture")


if __name__ == "__main__":
    main()
