"""Draws how a weight is tiled for the array, from its tiling: an SVG of four panels."""

from qlinear.backends.aie.tiling import Tiling

_STRIPS = ("#4269d0", "#efb118", "#3ca951", "#ff725c")  # one colour for each column of the array
_INK, _PALE, _LINE = "#1b1e23", "#6c7079", "#c9ccd1"
_WIDTH, _HEIGHT = 980, 560


def tiling(tiling: Tiling, layer: str) -> str:
    """The picture for a tiling of phx; `layer` is what the title calls the weight."""
    volume, (rows, columns) = tiling.sub_volume, tiling.grid
    title = f"{layer}: a weight of K x N = {tiling.k} x {tiling.n} on {tiling.device.name}, group {tiling.kernel_group}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="{_INK}">',
        '<defs><pattern id="padding" width="6" height="6" patternTransform="rotate(45)" '
        'patternUnits="userSpaceOnUse"><path d="M0 0V6" stroke="#9aa0a8" stroke-width="1.5"/></pattern></defs>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(24, 32, title, size=17, weight="bold"),
        *_heading(24, "1  Cut into kernel blocks", f"{tiling.k_blocks * tiling.n_blocks} dispatches a token"),
        *_blocks(tiling, 60, 122, 120, 250),
        *_heading(290, "2  A block is a grid of sub-volumes", f"{rows} x {columns}, stored in the order shown"),
        *_sub_volumes(rows, columns, volume.k, volume.n, 350, 122),
        *_heading(700, "3  Each core is fed its own", "a strip to each column of the array"),
        *_array(730, 122),
        *_heading(24, "4  A sub-volume in bytes", f"{volume.k} x {volume.n} weights, {volume.size} bytes", y=448),
        *_bytes(tiling, 24, 492, _WIDTH - 48),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x, y, words, size=12, anchor="start", fill=_INK, weight="normal") -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{words}</text>'


def _box(x, y, width, height, fill, opacity=1.0, line="#fff") -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
        f'fill-opacity="{opacity:g}" stroke="{line}"/>'
    )


def _heading(x, title, subtitle, y=68) -> list[str]:
    return [_text(x, y, title, size=14, weight="bold"), _text(x, y + 19, subtitle, fill=_PALE)]


def _blocks(tiling: Tiling, x, y, width, height) -> list[str]:
    """The padded weight to scale along K, one outline a block, the padding hatched."""
    per_k = height / (tiling.k_blocks * tiling.kernel.k)
    live = tiling.k * per_k
    drawn = [
        _text(x + width / 2, y - 8, f"N = {tiling.kernel.n}", anchor="middle"),
        _box(x, y, width, live, "#dbe3f8"),
        _box(x, y + live, width, height - live, "url(#padding)"),
    ]
    for block in range(tiling.k_blocks):
        top, tall = y + block * tiling.kernel.k * per_k, tiling.kernel.k * per_k
        drawn.append(_box(x, top, width, tall, "none", line=_INK))
        drawn.append(_text(x + width / 2, top + 22, f"K block {block}", anchor="middle"))
        drawn.append(_text(x + width + 6, top + tall, f"K = {(block + 1) * tiling.kernel.k}", fill=_PALE))
    if live < height:
        drawn.append(_text(x + width + 6, y + live, f"K = {tiling.k}", fill=_PALE))
    drawn.append(_text(x, y + height + 22, f"{1 - tiling.useful:.0%} of the work is padding;", fill=_PALE))
    drawn.append(_text(x, y + height + 38, "the host adds the blocks in fp32", fill=_PALE))
    return drawn


def _sub_volumes(rows, columns, k, n, x, y) -> list[str]:
    """The first eight columns and some rows of a block's grid, each cell with its place in the buffer."""
    wide, tall, drawn = 36, 30, []
    shown = [0, 1, 2, None, rows - 1]
    for column in range(8):
        left = x + column * wide + column // 4 * 10
        colour = _STRIPS[column // 4]
        drawn.append(_text(left + wide / 2, y - 8, f"c = {column}", size=11, anchor="middle"))
        for line, row in enumerate(shown):
            if row is None:
                drawn.append(_text(left + wide / 2, y + line * tall + 20, "...", anchor="middle", fill=_PALE))
                continue
            place = row * 4 + column % 4 + column // 4 * rows * 4
            drawn.append(_box(left, y + line * tall, wide, tall, colour, 0.55 if row == 0 else 0.25))
            drawn.append(_text(left + wide / 2, y + line * tall + 20, place, anchor="middle"))
    for line, label in enumerate(("bias", f"k 0-{k - 1}", f"k {k}-{2 * k - 1}", "", "last k")):
        drawn.append(_text(x - 6, y + line * tall + 20, label, size=11, anchor="end", fill=_PALE))
    below = y + len(shown) * tall + 24
    drawn.append(_text(x, below, f"Each c is {n} columns of the weight; {columns - 8} more c", fill=_PALE))
    drawn.append(_text(x, below + 16, "follow. Four make a strip, stored row by row:", fill=_PALE))
    drawn.append(_text(x, below + 32, "what one column of the array reads in turn.", fill=_PALE))
    return drawn


def _array(x, y) -> list[str]:
    """The 4x4 cores, each labelled with the column of sub-volumes it works on."""
    side, drawn = 50, []
    for column, colour in enumerate(_STRIPS):
        for row in range(4):
            left, top = x + column * (side + 4), y + row * (side + 4)
            drawn.append(_box(left, top, side, side, colour, 0.25))
            drawn.append(_text(left + side / 2, top + 22, f"c = {4 * column + row}", anchor="middle"))
            drawn.append(_text(left + side / 2, top + 38, "8 rows", size=10, anchor="middle", fill=_PALE))
        drawn.append(_text(x + column * (side + 4) + side / 2, y - 8, f"strip {column}", size=11, anchor="middle"))
    below = y + 4 * (side + 4) + 18
    drawn.append(_text(x, below, "All cores see the same 8 rows of x;", fill=_PALE))
    drawn.append(_text(x, below + 16, "a round covers 16 columns c,", fill=_PALE))
    drawn.append(_text(x, below + 32, "the next starts at c = 16.", fill=_PALE))
    return drawn


def _bytes(tiling: Tiling, x, y, width) -> list[str]:
    """The parts of a sub-volume side by side; widths are not to scale, the labels are exact."""
    volume = tiling.sub_volume
    parts = [
        ("zeros", volume.zeros_at, volume.scales_at, "4 bits, row-major over (group, n)", "#dbe3f8", 0.22),
        ("scales", volume.scales_at, volume.codes_at, "bf16, row-major over (group, n)", "#b9c8f0", 0.26),
        (
            "codes",
            volume.codes_at,
            volume.size,
            "4 bits, row-major over (k, n), the even n in the low half",
            "#8fa8e8",
            0.52,
        ),
    ]
    drawn = []
    for name, start, end, what, colour, share in parts:
        wide = share * width
        drawn.append(_box(x, y, wide, 34, colour))
        drawn.append(_text(x + wide / 2, y + 22, f"{name}: {end - start} bytes", anchor="middle", weight="bold"))
        drawn.append(_text(x + 2, y + 50, what, size=11, fill=_PALE))
        drawn.append(_text(x + 2, y - 5, start, size=11, fill=_PALE))
        x += wide
    drawn.append(_text(x, y - 5, volume.size, size=11, anchor="end", fill=_PALE))
    return drawn
