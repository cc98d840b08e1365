"""The picture's numbers, on a tiling that is not the one shown in docs/aie.md."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.aie.picture import draw, place
from qlinear.backends.aie.devices import PHX, Kernel
from qlinear.backends.aie.packing import pack, write_buffers
from qlinear.backends.aie.tiling import tile_matmul
from qlinear.grid import GridWeight

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn():
    # K = 20000 is two blocks of 11008, groups of 32 have sub-volumes of 32 x 128.
    return ElementTree.fromstring(draw(tile_matmul(PHX, 1, 20000, 300, 4, 32), "a layer"))


def _words(drawn):
    return [element.text or "" for element in drawn.iter(f"{SVG}text")]


def test_what_is_written(drawn):
    words = _words(drawn)
    for expected in (
        "a layer: a weight of K x N = 20000 x 300 on phx, group 32",
        "2 dispatches a token",
        "345 x 32, stored in the order shown",  # a row for the bias and 11008 / 32; 4096 / 128
        "32 x 128 weights, 2368 bytes",
        "zeros: 64 bytes",  # 128 zeros of 4 bits
        "scales: 256 bytes",  # 128 of bf16
        "codes: 2048 bytes",  # 32 x 128 of 4 bits
        "k 32-63",
        "K = 11008",
        "K = 20000",
        "K = 22016",
        "93% of the work is padding;",  # 20000 * 300 / (22016 * 4096) = 6.7% is not
    ):
        assert expected in words


def test_cells_carry_their_place_in_the_buffer(drawn):
    cells = [int(word) for word in _words(drawn) if word.isdigit()]
    # Four rows are shown of each column: the bias, the first two and the last. A strip has 345 rows of 4.
    first = [[c, 4 + c, 8 + c, 4 * 344 + c] for c in range(4)]
    second = [[1380 + p for p in column] for column in first]
    assert cells[:32] == sum(first + second, [])


def test_a_place_is_where_the_buffer_has_the_sub_volume():
    device = replace(PHX, kernels=(Kernel(256, 1024, (128,)), Kernel(384, 512, (128,))))
    tiling = tile_matmul(device, 1, 256, 1024, 4, 128)
    rows, columns = tiling.grid
    codes = torch.arange(8).repeat_interleave(128).view(-1, 1) + 8 * torch.arange(2).repeat_interleave(128)
    scales = torch.ones(1024, 2, dtype=torch.bfloat16)
    weight = GridWeight(codes.to(torch.uint8), torch.zeros(1024, 2, dtype=torch.uint8), scales, 4)
    (buffer,) = write_buffers(pack(weight, None, tiling), tiling)
    volumes = buffer.view(rows * columns, -1)
    for row in (1, 2):
        for column in range(columns):
            # Codes of sub-volume (row, column) are all 8 * (row - 1) + column, in both halves of a byte.
            assert set(volumes[place(row, column, rows), 320:].tolist()) == {(8 * (row - 1) + column) * 17}


def test_the_padding_is_drawn_to_scale(drawn):
    boxes = [{key: box.get(key) for key in ("y", "height", "fill")} for box in drawn.iter(f"{SVG}rect")]
    padding = next(box for box in boxes if box["fill"] == "url(#padding)")
    live = next(box for box in boxes if box["fill"] == "#dbe3f8")
    assert float(live["height"]) == pytest.approx(250 * 20000 / 22016, abs=1e-3)
    assert float(padding["height"]) == pytest.approx(250 * 2016 / 22016, abs=1e-3)
    assert float(padding["y"]) == pytest.approx(float(live["y"]) + float(live["height"]), abs=1e-2)
