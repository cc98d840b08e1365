"""The kernels with every lane a thread, under the sanitizers that see a missing barrier and a stray address."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FLAGS = ("-std=c++17", "-O1", "-g", "-Wno-unknown-pragmas", "-pthread")


def run(folder: Path, sanitizer: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    """The program of this folder, its kernels from a checkout at `root`."""
    if shutil.which("g++") is None:
        pytest.skip("the cuda kernels are run on the cpu with g++, which is not here")
    program, here = folder / sanitizer, root / HERE.relative_to(ROOT)
    command = ["g++", *FLAGS, f"-fsanitize={sanitizer}", f"-I{here}", str(here / "sanitize.cpp"), "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in made.stderr:
        pytest.skip(f"g++ has no {sanitizer} sanitizer here")
    assert made.returncode == 0, made.stderr
    stop = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([program], capture_output=True, text=True, timeout=300, env=stop)


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_sanitizers_see_nothing(tmp_path, sanitizer):
    done = run(tmp_path, sanitizer)
    assert done.returncode == 0 and done.stderr == "", done.stderr[:2000]


def test_a_missing_barrier_is_seen(tmp_path):
    """That between the sums of the warps and who adds them up."""
    for folder in ("tests/qlinear/cuda", "qlinear/csrc/cuda"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "qlinear/csrc/cuda/linear.h"
    before, barrier, after = source.read_text().rpartition("    __syncthreads();\n    const int n = tile")
    assert barrier
    source.write_text(before + "    const int n = tile" + after)
    done = run(tmp_path, "thread", tmp_path)
    assert "data race" in done.stderr and "linear.h" in done.stderr
