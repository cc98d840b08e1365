"""What nvcc makes of the kernels: nothing spilled, wide copies, few instructions a weight. Skipped where it is not."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qlinear.backends.cuda.binary import ENTRY, SOURCES

ARCHITECTURES = ("sm_80", "sm_90a")
# Of a lane, for each of its weights, when a single row is multiplied. It may only go down.
MOST_INSTRUCTIONS = {"awq_row_4": 2.0, "awq_row_3": 2.15, "awq_row_4_fine": 2.25, "awq_row_3_fine": 2.35}
WEIGHTS_OF_A_STAGE = 16 * 256 // 32  # a lane's


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request, tmp_path_factory):
    """The cubin, and what ptxas says of every kernel."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not here: what it makes of the cuda kernels is not looked at")
    cubin = tmp_path_factory.mktemp("cuda") / "kernels.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-cubin", f"-arch={request.param}", "-Xptxas=-v", "-o", str(cubin)]
    done = subprocess.run([*command, str(SOURCES / ENTRY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cubin, done.stderr + done.stdout


@functools.cache
def disassemble(cubin: Path) -> dict[str, list[str]]:
    """The instructions of every kernel, in order."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        pytest.skip("cuobjdump is not here: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    text = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels = re.split(r"Function : (\w+)", text)[1:]
    pattern = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?) ?;")
    return {name: pattern.findall(code) for name, code in zip(kernels[::2], kernels[1::2], strict=True)}


def test_nothing_is_spilled(built):
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", built[1])
    assert len(spills) >= 30 and set(spills) == {("0", "0", "0")}


def test_nothing_is_local_and_copies_are_wide(built):
    for name, code in disassemble(built[0]).items():
        assert not [line for line in code if re.match(r"(@!?P\d )?(LDL|STL)", line)], name
        copies = [line for line in code if "LDGSTS" in line]
        assert all(".128" in line for line in copies), name
        assert bool(copies) == name.startswith(("awq_row", "awq_gate_up")), name


@pytest.mark.parametrize("kernel", MOST_INSTRUCTIONS)
def test_instructions_of_a_weight(built, kernel):
    """From product to product of a whole stage: what its copies take besides is a tenth of that."""
    code = disassemble(built[0])[kernel]
    products = [i for i, line in enumerate(code) if "HMMA" in line]
    assert len(products) == 20  # four for a unit of a stage that is not whole, then sixteen for one that is
    assert (products[-1] - products[3]) / WEIGHTS_OF_A_STAGE < MOST_INSTRUCTIONS[kernel]
