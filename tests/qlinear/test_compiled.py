"""What the compiler makes of inner loops, as objdump has it."""

import re
import shutil
import subprocess
from collections import Counter

import pytest

from qlinear.backends.cpu import native

pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
KERNEL = re.compile(r"^[0-9a-f]+ <.*?\b((?:block|add_pairs|Fours\w+<.*>::\w+)<.*>)\(.*>:$")
PRODUCT, KEPT = (
    re.compile(r"\bv(pmadd|pdp|fn?madd|dpbf16)"),
    re.compile(r"\([^)]*%rsp[^)]*\).*%[xyz]mm|%[xyz]mm.*\(%rsp"),
)


@pytest.fixture(scope="module")
def counted():
    """Of each kernel its multiplications, and how often a vector goes to the stack or comes from there."""
    if not native.is_built():
        pytest.skip(native.HOW_TO_BUILD)
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", native.LIBRARY]
    found, counts = {}, Counter()
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(">:"):
            kernel = KERNEL.match(line)
            counts = found.setdefault(kernel[1], Counter()) if kernel else Counter()
        counts["products"] += bool(PRODUCT.search(line))
        counts["kept"] += bool(KEPT.search(line))
    return found


def test_sums_stay_in_registers(counted):
    """Products that are put on the stack before they are added up take twice the time. A few vectors lie there anyhow,
    which only show in kernels with few rows.
    """
    blocks = {name.removesuffix(">"): counts for name, counts in counted.items() if name.startswith("block<")}
    many = {name: counts for name, counts in blocks.items() if "Avx" in name and counts["products"] >= 150}
    assert {name.rpartition("::")[2] for name in many} >= {"MultiplyThenAdd>, 3, 6", "MultiplyThenAdd>, 4, 6"}
    assert {name: counts for name, counts in many.items() if counts["kept"] >= counts["products"]} == {}


def test_attention_adds_up_values_in_registers(counted):
    """Of AVX2: a vector that is wider than a register is kept on the stack, for which attention took twice the time."""
    found = {name: counts for name, counts in counted.items() if re.match("add_.*(, 8>|InHalves)|FoursAsWords", name)}
    assert {name.partition("<")[0] for name in found} == {"add_pairs", "FoursAsWords"} and all(
        counts["products"] for counts in found.values()
    )
    assert {name: counts for name, counts in found.items() if 2 * counts["kept"] > counts["products"]} == {}
