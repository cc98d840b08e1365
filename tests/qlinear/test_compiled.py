"""What the compiler makes of the block kernels, as objdump has it."""

import re
import shutil
import subprocess
from collections import Counter

import pytest

from qlinear.backends.cpu import native

pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
BLOCK = re.compile(r"^[0-9a-f]+ <.*?\bblock<(.*)>\(.*>:$")
PRODUCT, KEPT = (
    re.compile(r"\bv(pmadd|pdp|fn?madd|dpbf16)"),
    re.compile(r"\([^)]*%rsp[^)]*\).*%[xyz]mm|%[xyz]mm.*\(%rsp"),
)


@pytest.fixture(scope="module")
def counted():
    """Of each block kernel its multiplications, and how often a vector goes to the stack or comes from there."""
    if not native.is_built():
        pytest.skip(native.HOW_TO_BUILD)
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", native.LIBRARY]
    found, counts = {}, Counter()
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(">:"):
            block = BLOCK.match(line)
            counts = found.setdefault(block[1], Counter()) if block else Counter()
        counts["products"] += bool(PRODUCT.search(line))
        counts["kept"] += bool(KEPT.search(line))
    return found


def test_sums_stay_in_registers(counted):
    """Products that are put on the stack before they are added up take twice the time. A few vectors lie there anyhow,
    which only show in kernels with few rows.
    """
    many = {name: counts for name, counts in counted.items() if "Avx" in name and counts["products"] >= 150}
    assert {name.rpartition("::")[2] for name in many} >= {"MultiplyThenAdd>, 3, 6", "MultiplyThenAdd>, 4, 6"}
    assert {name: counts for name, counts in many.items() if counts["kept"] >= counts["products"]} == {}
