"""docs/aie.md holds what the code says: its tables, its picture, and the figures in its text."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import docs
from qlinear.backends.aie.devices import PHX
from qlinear.backends.aie.tiling import tile_matmul

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["benchmarks.aie.tables", "benchmarks.aie.picture"])
def test_the_tables_and_the_picture_are_those_the_commands_make(module):
    done = subprocess.run([sys.executable, "-m", module, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_tiling_shown_is_what_a_layer_prints():
    page = (ROOT / "docs/aie.md").read_text(encoding="utf-8")
    assert f"```\n{tile_matmul(PHX, 33, 14336, 4096, 4, 128)}\n```" in page


@pytest.mark.parametrize("group, columns", [(128, 128), (32, 128)])
def test_the_bits_of_a_weight_are_those_of_its_sub_volume(group, columns):
    page = " ".join((ROOT / "docs/aie.md").read_text(encoding="utf-8").split())
    size = PHX.sub_volume(group).size
    assert f"{size} bytes at group {group}, {size * 8 / (group * columns):.3f}" in page


def test_a_file_is_written_or_held_against_what_was_made(tmp_path, monkeypatch):
    file = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["made"])
    docs.keep(file, "made\n", "python -m maker")
    assert file.read_text() == "made\n"
    monkeypatch.setattr(sys, "argv", ["made", "--check"])
    docs.keep(file, "made\n", "python -m maker")
    with pytest.raises(SystemExit, match="^docs/page.md is out of date: run python -m maker$"):
        docs.keep(file, "made anew\n", "python -m maker")
    assert file.read_text() == "made\n"


def test_only_what_stands_between_the_markers_is_replaced():
    page = "head\n<a>\n\nold\n\n<b>\ntail <b>\n"
    assert docs.between(page, "<a>", "<b>", "new") == "head\n<a>\n\nnew\n\n<b>\ntail <b>\n"
