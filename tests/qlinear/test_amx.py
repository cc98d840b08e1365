"""The sources of AMX and of AVX-512 VNNI, compiled for an emulation of both: the machine needs neither."""

import ctypes
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from qlinear.backends.cpu import native
from qlinear.errors import TargetError
from qlinear.packing import PackedWeight

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from qlinear.backends.cpu.backend import CpuBackend, _linear  # noqa: E402
from tests.qlinear.exact import assert_close, random, random_weight  # noqa: E402

COMPILER = os.environ.get("CXX", "g++")
if "avx2" not in AVAILABLE or shutil.which(COMPILER.split()[0]) is None or platform.system() != "Linux":
    pytest.skip("the emulation takes a C++ compiler, and AVX2", allow_module_level=True)

HERE, CSRC = Path(__file__).parent / "amx", Path(native.__file__).parents[2] / "csrc"
EMULATED = [CSRC / "x86" / "avx512vnni.cpp", CSRC / "x86" / "avx512amx.cpp"]
PLAIN = [*(CSRC / "common" / f"{name}.cpp" for name in ("linear", "ops", "threads")), HERE / "processor.cpp"]
BITS, GROUPS, ROWS = (3, 4), (32, 64, 128, 256), (1, 2, 12, 13, 16, 17, 31, 32, 33, 70)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The library, as `native.library()` has the real one."""
    folder = tmp_path_factory.mktemp("emulated")

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        flags = ["-std=c++17", "-O0", "-fPIC", "-w", "-mavx2", "-mfma", "-c", str(source), "-o", str(target)]
        included = ["-include", str(HERE / "emulated.h")] if source in EMULATED else []
        subprocess.run([*COMPILER.split(), *flags, *included], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, EMULATED + PLAIN))
    target = folder / "emulated.so"
    subprocess.run([*COMPILER.split(), "-shared", "-o", str(target), *map(str, objects), "-pthread"], check=True)
    library = ctypes.CDLL(str(target))
    for name in ("awq_isa", "awq_select_isa", "awq_linear", "awq_set_threads"):
        real, function = getattr(native.library(), name), getattr(library, name)
        function.restype, function.argtypes = real.restype, real.argtypes
    return library


@pytest.fixture(params=["avx512vnni", "amx"])
def isa(request, emulated):
    assert emulated.awq_select_isa(request.param.encode()) == 0
    return request.param


def linear(library, x, weight, bias=None, *, int8=False):
    """What the emulated library makes of a weight that the real one packed."""
    return _linear(library.awq_linear, x, CpuBackend(int8=int8).prepare(PackedWeight.pack(weight), bias))


def activations(rows, k):
    return random(rows, k, seed=rows).bfloat16()


@pytest.fixture(params=[(bits, group) for bits in BITS for group in GROUPS], ids=str)
def cases(request):
    """A weight with its bias, and activations of one row to three blocks."""
    bits, group = request.param
    weight, bias = random_weight(70, 3 * group, bits, group), random(70)
    return [(activations(rows, 3 * group), weight, bias) for rows in ROWS]


def test_close_to_float64(emulated, isa, cases):
    for x, weight, bias in cases:
        assert_close(linear(emulated, x, weight, bias), x, weight, bias, isa)


def test_int8_has_the_bits_of_other_instruction_sets(emulated, isa, cases):
    here = CpuBackend(int8=True)
    for x, weight, bias in cases:
        expected = here.matmul(x, here.prepare(PackedWeight.pack(weight), bias))
        assert torch.equal(linear(emulated, x, weight, bias, int8=True), expected)


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_has_the_same_bits_whatever_is_beside_it(emulated, isa, int8):
    weight, x = random_weight(33, 192, 3, 64), activations(70, 192)
    together = linear(emulated, x, weight, int8=int8)
    for rows in (1, 2, 12, 13, 31, 33):
        assert torch.equal(linear(emulated, x[-rows:], weight, int8=int8), together[-rows:])


def test_rows_that_lie_apart(emulated, isa):
    weight, apart = random_weight(33, 128, 4, 32), activations(40, 200)
    x = apart[:, 8:136]
    assert torch.equal(linear(emulated, x, weight), linear(emulated, x.contiguous(), weight))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_stays_in_its_row(emulated, isa, value, int8):
    weight, x = random_weight(33, 128, 4, 64), activations(20, 128)
    clean = linear(emulated, x, weight, int8=int8)
    x[7, 3] = value
    y = linear(emulated, x, weight, int8=int8)
    assert not y[7].isfinite().any()
    assert torch.equal(y[:7], clean[:7]) and torch.equal(y[8:], clean[8:])


def test_on_several_threads(emulated, isa):
    weight, x = random_weight(900, 256, 4, 64), activations(33, 256)
    alone = linear(emulated, x, weight)
    emulated.awq_set_threads(None, None, 3)
    try:
        assert torch.equal(linear(emulated, x, weight), alone)
    finally:
        emulated.awq_set_threads(None, None, 1)
