"""The kernels with every lane a thread, under the sanitizers that see a missing barrier and a stray address."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-g", "-Wno-unknown-pragmas", "-pthread")


def run(folder: Path, sanitizer: str, include: Path = HERE) -> subprocess.CompletedProcess:
    if shutil.which("g++") is None:
        pytest.skip("the cuda kernels are run on the cpu with g++, which is not here")
    program = folder / sanitizer
    source = include / "sanitize.cpp"
    command = ["g++", *FLAGS, f"-fsanitize={sanitizer}", f"-I{include}", str(source), "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in made.stderr:
        pytest.skip(f"g++ has no {sanitizer} sanitizer here")
    assert made.returncode == 0, made.stderr
    return subprocess.run([program], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_sanitizers_see_nothing(tmp_path, sanitizer):
    done = run(tmp_path, sanitizer)
    assert done.returncode == 0 and done.stderr == "", done.stderr[:2000]
