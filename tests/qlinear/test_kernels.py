"""The native kernels against float64, on every instruction set this machine has."""

import pytest
import torch

from qlinear.backends.cpu import native
from qlinear.errors import TargetError
from qlinear.grid import GridWeight
from qlinear.packing import JoinedWeight, PackedWeight

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402
from tests.qlinear.exact import INT16, assert_close, random_weight, reference  # noqa: E402

BITS, GROUPS = (3, 4), (32, 64, 128, 256)
ROWS = (1, 2, 3, 5, 8, 17, 64, 130)
SHAPES = ((1, 1), (7, 3), (33, 2), (100, 5), (257, 3))  # (N, groups along K)


@pytest.fixture
def backend(isa):
    return CpuBackend()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda count: torch.set_num_threads(count)
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_equals_float64(backend, bits, group, dtype):
    generator = torch.Generator().manual_seed(1)
    for n, groups in SHAPES:
        weight = random_weight(n, groups * group, bits, group)
        prepared = backend.prepare(PackedWeight.pack(weight), None)
        for rows in ROWS:
            x = torch.randn(rows, groups * group, generator=generator).to(dtype)
            assert_close(backend.matmul(x, prepared), x, weight)


@pytest.mark.parametrize("bits", BITS)
def test_every_block_size(backend, bits):
    weight = random_weight(40, 96, bits, 32)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for rows in range(1, 26):
        x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).bfloat16()
        assert_close(backend.matmul(x, prepared), x, weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("code, zero", [("low", "high"), ("high", "low"), ("high", "high"), ("low", "low")])
def test_extreme_codes_and_zeros(backend, bits, code, zero):
    value = {"low": 0, "high": 2**bits - 1}
    weight = random_weight(33, 128, bits, 64)
    weight = GridWeight(
        torch.full_like(weight.codes, value[code]), torch.full_like(weight.zeros, value[zero]), weight.scales, bits
    )
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for rows in (1, 13):
        x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(2)) + 1
        assert_close(backend.matmul(x, prepared), x, weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_error_before_the_result_is_rounded(backend, group, bits):
    """A bias of minus the exact result leaves the error, which bfloat16 shows in full."""
    weight = random_weight(64, 4 * group, bits, group)
    x = torch.randn(1, 4 * group, generator=torch.Generator().manual_seed(12)).bfloat16()
    exact, _ = reference(x, weight)
    error = backend.matmul(x, backend.prepare(PackedWeight.pack(weight), -exact[0].float()))
    relative = error.double().square().mean().sqrt() / exact.square().mean().sqrt()
    assert relative < (1.5e-5 if native.library().awq_isa().decode() in INT16 else 5e-7)


@pytest.mark.parametrize("bits", BITS)
def test_one_activation_a_thousand_times_the_others(backend, bits):
    weight = random_weight(33, 512, bits, 128)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for rows in (1, 4, 12, 14):
        x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(13))
        x[:, 77] *= 1000
        x[-1, 300] = -3000
        assert_close(backend.matmul(x.bfloat16(), prepared), x.bfloat16(), weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [1.0, -1.0], ids=["positive", "negative"])
def test_largest_sums(backend, bits, value):
    """Every code and activation as large as can be, zero points at the other end: integers must not overflow."""
    weight = random_weight(32, 512, bits, 256)
    largest = GridWeight(
        torch.full_like(weight.codes, 2**bits - 1), torch.zeros_like(weight.zeros), weight.scales, bits
    )
    smallest = GridWeight(
        torch.zeros_like(weight.codes), torch.full_like(weight.zeros, 2**bits - 1), weight.scales, bits
    )
    x = torch.full((12, 512), value * (2 - 2**-7)).bfloat16()  # 32640 of 2^15 steps
    for extreme in (largest, smallest):
        prepared = backend.prepare(PackedWeight.pack(extreme), None)
        for rows in range(1, 13):
            assert_close(backend.matmul(x[:rows], prepared), x[:rows], extreme)


@pytest.mark.parametrize("size", [2.0**-110, 2.0**-60, 2.0**120])
def test_tiny_and_huge_activations(backend, size):
    weight = random_weight(33, 128, 4, 32)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for rows in (1, 5):
        x = (torch.randn(rows, 128, generator=torch.Generator().manual_seed(14)) * size).bfloat16()
        assert_close(backend.matmul(x, prepared), x, weight)


@pytest.mark.parametrize("bits", BITS)
def test_groups_of_zeros_and_of_less_than_normal_numbers(backend, bits):
    weight, bias = random_weight(33, 128, bits, 32), torch.linspace(-1, 1, 33).bfloat16()
    prepared = backend.prepare(PackedWeight.pack(weight), bias)
    x = torch.zeros(3, 128)
    x[1] = 2.0**-130
    x[2, 64:] = 1.0
    y = backend.matmul(x.bfloat16(), prepared)
    assert torch.equal(y[0], bias) and (y[1] - bias).abs().max() < 2.0**-120
    assert_close(y[2:], x[2:].bfloat16(), weight, bias)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinity_and_nan_show_in_their_row_alone(backend, bits, value):
    weight = random_weight(33, 128, bits, 32)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(15)).bfloat16()
    clean = x.clone()
    x[1, 40] = value
    y = backend.matmul(x, prepared)
    assert not y[1].isfinite().any()
    assert torch.equal(y[::2], backend.matmul(clean, prepared)[::2])
    assert not backend.matmul(x[1:2], prepared).isfinite().any()


@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bias(backend, bias_dtype):
    weight = random_weight(45, 256, 4, 128)
    bias = torch.linspace(-3, 3, 45).to(bias_dtype)
    prepared = backend.prepare(PackedWeight.pack(weight), bias)
    for rows in (1, 15):
        x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(3))
        assert_close(backend.matmul(x, prepared), x, weight, bias)


def test_more_rows_than_a_panel_and_more_than_a_superblock(backend):
    weight = random_weight(33, 1024, 3, 256)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = torch.randn(1030, 1024, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert_close(backend.matmul(x, prepared), x, weight)


def test_float32_activations_are_not_rounded_to_bfloat16(backend):
    weight = random_weight(32, 64, 4, 64)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = torch.full((1, 64), 1 + 2**-20)
    exact, _ = reference(x, weight)
    assert ((backend.matmul(x, prepared) - exact).abs() <= 4e-7 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x[::2, :128],
        lambda x: x.t()[:128].t(),
        lambda x: x[:1, :128].expand(5, 128),
        lambda x: x[3, :128],
        lambda x: x[:, :128].reshape(2, 1, 4, 128).transpose(0, 2),
    ],
    ids=["strided columns", "strided rows", "transposed", "expanded", "one row", "four dimensions"],
)
def test_any_strides_and_leading_shape(backend, view):
    weight = random_weight(35, 128, 4, 64)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = view(torch.randn(8, 256, generator=torch.Generator().manual_seed(5)))
    y = backend.matmul(x, prepared)
    assert y.shape == (*x.shape[:-1], 35)
    assert_close(y.reshape(-1, 35), x.reshape(-1, 128), weight)


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128)])
def test_no_rows(backend, shape):
    prepared = backend.prepare(PackedWeight.pack(random_weight(9, 128, 4, 64)), None)
    assert backend.matmul(torch.empty(shape), prepared).shape == (*shape[:-1], 9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_packing_round_trip_and_size(backend, bits, group):
    for n, groups in SHAPES:
        k = groups * group
        weight = random_weight(n, k, bits, group)
        prepared = backend.prepare(PackedWeight.pack(weight), None)
        padded = -(-n // 32) * 32
        assert prepared.nbytes == padded * k * bits // 8 + padded * groups * 3  # 16-bit scale, 8-bit zero
        back = [torch.empty_like(t) for t in (weight.codes, weight.zeros, weight.scales)]
        native.library().awq_unpack(prepared.address, *(t.data_ptr() for t in back))
        for got, put in zip(back, (weight.codes, weight.zeros, weight.scales), strict=True):
            assert torch.equal(got, put)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("k", [256, 768, 1024, 1280, 2816])  # a row is packed 96 words at a time, turned 16 at a time
def test_every_instruction_set_packs_the_same_bytes(monkeypatch, k, group, bits):
    grid = random_weight(70, k, bits, group)
    weight = PackedWeight.pack(grid)
    packed = []
    for isa in AVAILABLE:
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        prepared = CpuBackend().prepare(weight, None)
        packed.append(prepared.packed)
    native.select_isa("")
    assert all(torch.equal(packed[0], other) for other in packed[1:])
    codes, zeros, scales = (torch.empty_like(t) for t in (grid.codes, grid.zeros, grid.scales))
    native.library().awq_unpack(prepared.address, codes.data_ptr(), zeros.data_ptr(), scales.data_ptr())
    assert torch.equal(codes, grid.codes) and torch.equal(zeros, grid.zeros) and torch.equal(scales, grid.scales)


@pytest.mark.parametrize("rows", [(64, 32, 32), (32, 5), (33, 7, 40), (1, 64), (40,)])
def test_parts_are_packed_as_one_weight_is(backend, rows):
    """Where each but the last fills whole tiles, and where it does not."""
    grids = [random_weight(n, 192, 3, 64) for n in rows]
    whole = GridWeight(*(torch.cat([getattr(g, part) for g in grids]) for part in ("codes", "zeros", "scales")), 3)
    joined = backend.prepare(JoinedWeight(tuple(PackedWeight.pack(grid) for grid in grids)), None)
    assert (joined.n, joined.k, joined.bits, joined.group_size) == (sum(rows), 192, 3, 64)
    assert torch.equal(joined.packed, backend.prepare(PackedWeight.pack(whole), None).packed)


@pytest.mark.parametrize("rows", [1, 3, 40, 600])
def test_same_bits_at_any_thread_count(backend, two_threads, rows):
    weight = random_weight(515, 512, 3, 64)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(6))
    results = []
    for count in (1, 2, 3):
        two_threads(count)
        results.append(backend.matmul(x, prepared))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
