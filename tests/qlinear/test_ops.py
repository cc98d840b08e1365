"""The table of operations is whole on every instruction set, and each entry comes from where it should."""

import re
from pathlib import Path

import pytest

from qlinear.backends.cpu import native
from qlinear.errors import TargetError

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

CSRC = Path(native.__file__).parents[2] / "csrc"
LINEAR = ("linear_bf16", "linear_f32", "linear_int8", "pack_tile_3", "pack_tile_4")
DECODER_ROWS = ("norm", "norm_heads", "add", "embed", "rope", "gate", "merge", "scale", "route", "mix", "cap",
                "layer_norm", "activate", "to_bytes")  # fmt: skip
DECODER_PAIRS = ("attend", "dense", "dense_logits")
EVERY = {*LINEAR, *DECODER_ROWS, *DECODER_PAIRS, "attend_int8"}
# What each instruction set overrides; the other entries stay those of the ones below it.
CLAIMS = {
    "scalar": EVERY,
    "avx2": EVERY,
    "avxvnni": {"linear_bf16", "linear_int8", "attend_int8"},
    "avx512": EVERY,
    "avx512vnni": {"linear_bf16", "linear_int8", "attend_int8"},
    "avx512bf16": {"linear_bf16", *DECODER_PAIRS},
    "amx": {"linear_bf16", "linear_int8"},
}


def sources():
    """Each entry's name, and the instruction set it comes from: None where it cannot be called."""
    library = native.library()
    names = [library.awq_op_name(i).decode() for i in range(library.awq_op_count())]
    found = [library.awq_op_isa(i) for i in range(library.awq_op_count())]
    assert len(set(names)) == len(names)
    return {name: isa and isa.decode() for name, isa in zip(names, found, strict=True)}


def test_every_instruction_set_makes_a_claim():
    assert tuple(CLAIMS) == native.ISAS


def test_scalar_has_every_entry():
    native.select_isa("scalar")
    try:
        assert sources() == dict.fromkeys(EVERY, "scalar")
    finally:
        native.select_isa("")


def test_no_entry_is_missing(isa):
    assert [name for name, source in sources().items() if source is None] == []


def test_an_entry_comes_from_the_highest_instruction_set_that_claims_it(isa):
    below = AVAILABLE[: AVAILABLE.index(isa) + 1]
    fast = [
        lower for lower in below if lower != "avx512bf16" or lower == isa
    ]  # where it is slow, those above leave it out

    def expected(lowers):
        return {name: [lower for lower in lowers if name in CLAIMS[lower]][-1] for name in EVERY}

    assert sources() in (expected(below), expected(fast))


@pytest.mark.parametrize("index", [-1, len(EVERY), 1 << 30])
def test_there_is_no_other_entry(index):
    assert native.library().awq_op_count() == len(EVERY)
    assert native.library().awq_op_name(index) is None
    assert native.library().awq_op_isa(index) is None


def test_common_code_is_for_any_processor():
    processors = re.compile(r"immintrin|x86intrin|cpuid|arm_neon|_mm\d*_|__m\d+|__asm__|\basm\b|__x86_64__|__aarch64__")
    files = sorted((CSRC / "common").iterdir())
    assert len(files) > 20
    for file in files:
        assert not processors.search(file.read_text()), file.name
