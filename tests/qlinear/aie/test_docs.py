import subprocess
import sys
from pathlib import Path

from qlinear.backends.aie.devices import PHX
from qlinear.backends.aie.tiling import tile_matmul

ROOT = Path(__file__).parents[3]


def test_the_tables_and_the_picture_are_those_the_command_makes():
    command = [sys.executable, "-m", "benchmarks.aie_tables", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_plan_shown_is_what_a_layer_prints():
    page = (ROOT / "docs/aie.md").read_text()
    assert f"```\n{tile_matmul(PHX, 33, 14336, 4096, 4, 128)}\n```" in page
