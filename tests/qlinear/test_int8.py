"""Activations rounded to int8, against integers and fp32 in the order that csrc/common/int8.h states.

The reference is numpy's, in int64 for what is exact; the only roundings are those of the header: of activations, of the
group's scale, of the product with it, and of each sum. The last is a fused multiply-add, which float64 holds exactly
but for sums of more than 53 bits; rounding those twice may give the other neighbour in fp32, of which one rounding to
bfloat16 leaves nothing in these inputs, or one bfloat16 neighbour.
"""

import numpy as np
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
from tests.qlinear.exact import random_weight, reference  # noqa: E402

BITS, GROUPS = (3, 4), (32, 64, 128, 256)
SHAPES = ((1, 1), (7, 3), (33, 2), (100, 5))  # (N, groups along K)
LEAST = 2.0**-112  # groups whose largest is below are measured by it


@pytest.fixture
def backend(isa):
    return CpuBackend(int8=True)


def rounded(x, groups):
    """`(integers, scales)`: (M, groups, group size) int64 and (M, groups) float32."""
    values = x.float().numpy().reshape(len(x), groups, -1)
    largest = np.maximum(np.abs(values).max(2), np.float32(LEAST))
    steps = ((np.float32(127) / largest).view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32)
    integers = np.rint(values.astype(np.float64) * steps.astype(np.float64)[:, :, None]).astype(np.int64)
    return integers, largest / np.float32(127)


def expected(x, weight, bias=None):
    """bfloat16 `(M, N)`."""
    n, groups = weight.scales.shape
    integers, scales = rounded(x, groups)
    codes = weight.codes.numpy().astype(np.int64).reshape(n, groups, -1)
    zeros, weight_scales = weight.zeros.numpy().astype(np.int64), weight.scales.double().numpy()
    y = np.zeros((len(x), n), np.float32) if bias is None else np.tile(bias.float().numpy(), (len(x), 1))
    for g in range(groups):
        sums = integers[:, g] @ (codes[:, g] - zeros[:, g, None]).T
        assert np.abs(sums).max() <= 2**24
        scaled = sums.astype(np.float32) * scales[:, g, None]
        y = (scaled.astype(np.float64) * weight_scales[:, g] + y.astype(np.float64)).astype(np.float32)
    return torch.from_numpy(y).bfloat16()


def assert_same(y, x, weight, bias=None):
    assert y.dtype == torch.bfloat16
    difference = (y.view(torch.int16).int() - expected(x, weight, bias).view(torch.int16).int()).abs()
    assert difference.max() <= 1 and (difference != 0).double().mean() < 1e-3


def activations(rows, k, seed=1):
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_equals_integers(backend, bits, group):
    for n, groups in SHAPES:
        weight, bias = random_weight(n, groups * group, bits, group), torch.linspace(-1, 1, n)
        prepared = backend.prepare(PackedWeight.pack(weight), bias)
        for rows in (1, 2, 3, 5, 8, 17):
            x = activations(rows, groups * group, rows)
            assert_same(backend.matmul(x, prepared), x, weight, bias)


@pytest.mark.parametrize("bits", BITS)
def test_every_number_of_rows(backend, bits):
    weight = random_weight(40, 96, bits, 32)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for rows in range(1, 34):
        x = activations(rows, 96, rows)
        assert_same(backend.matmul(x, prepared), x, weight)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_has_the_same_bits_whatever_is_beside_it(backend, bits):
    weight = random_weight(77, 1024, bits, 128)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = activations(600, 1024)
    together = backend.matmul(x, prepared)
    assert_same(together, x, weight)
    for row in (0, 11, 12, 511, 512, 599):
        assert torch.equal(together[row], backend.matmul(x[row], prepared))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_every_instruction_set_gives_the_same_bits(monkeypatch, bits, group):
    weight, results = PackedWeight.pack(random_weight(130, 5 * group, bits, group)), []
    x = activations(27, 5 * group) * torch.logspace(-3, 3, 27)[:, None].bfloat16()
    for isa in AVAILABLE:
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        backend = CpuBackend(int8=True)
        results.append(backend.matmul(x, backend.prepare(weight, None)))
    native.select_isa("")
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_error_beside_the_exact_result_is_within_half_a_step_and_a_256th(backend, symmetric, bits):
    weight = random_weight(64, 512, bits, 128)
    if symmetric:
        weight = GridWeight(weight.codes, torch.full_like(weight.zeros, 2 ** (bits - 1)), weight.scales, bits)
    x = activations(9, 512)
    exact, size = reference(x, weight)
    step = x.double().unflatten(1, (4, 128)).abs().amax(2).repeat_interleave(128, 1) / 127
    zeros, scales = (part.double().repeat_interleave(128, 1) for part in (weight.zeros, weight.scales))
    allowed = (0.5 + 1 / 256) * step @ ((weight.codes.double() - zeros).abs() * scales).t()
    error = (backend.matmul(x, backend.prepare(PackedWeight.pack(weight), None)).double() - exact).abs()
    assert (error <= allowed + 2**-8 * exact.abs() + 5e-7 * size).all()
    assert error.mean() > 1e-3 * exact.abs().mean()  # int8 it is


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [1.0, -1.0], ids=["positive", "negative"])
@pytest.mark.parametrize("code, zero", [("low", "high"), ("high", "low"), ("high", "high"), ("low", "low")])
def test_largest_sums(backend, code, zero, value, bits):
    """All of 256 columns as large as can be: sums of two products in 16 bits must not overflow."""
    level, weight = {"low": 0, "high": 2**bits - 1}, random_weight(33, 512, bits, 256)
    codes, zeros = torch.full_like(weight.codes, level[code]), torch.full_like(weight.zeros, level[zero])
    weight = GridWeight(codes, zeros, weight.scales, bits)
    prepared, x = backend.prepare(PackedWeight.pack(weight), None), torch.full((13, 512), value).bfloat16()
    for rows in (1, 13):
        assert_same(backend.matmul(x[:rows], prepared), x[:rows], weight)


def test_ties_go_to_even_and_the_largest_is_127():
    values = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -127.0, 126.0, -0.0]).bfloat16()
    x = torch.zeros(1, 32).bfloat16()
    x[0, :10] = values
    integers, scales = rounded(x, 1)
    assert integers[0, 0, :10].tolist() == [127, 0, 2, 2, 0, -2, -126, -127, 126, 0] and scales[0, 0] == 1
    # each activation alone in front of its own weight of 1: a code of 1 above a zero point of 0
    codes, zeros = torch.eye(32, dtype=torch.uint8), torch.zeros(32, 1, dtype=torch.uint8)
    weight = PackedWeight.pack(GridWeight(codes, zeros, torch.ones(32, 1).bfloat16(), 4))
    for isa in AVAILABLE:
        native.select_isa(isa)
        backend = CpuBackend(int8=True)
        y = backend.matmul(x, backend.prepare(weight, None))
        assert y[0, :10].tolist() == [127, 0, 2, 2, 0, -2, -126, -127, 126, 0]
    native.select_isa("")


@pytest.mark.parametrize("bits", BITS)
def test_one_activation_a_thousand_times_the_others(backend, bits):
    """Its group loses the others; the other groups do not."""
    weight = random_weight(33, 512, bits, 128)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = activations(14, 512)
    x[:, 77] = 1000
    for rows in (1, 14):
        assert_same(backend.matmul(x[:rows], prepared), x[:rows], weight)
    integers, _ = rounded(x, 4)
    assert (integers[:, 0] != 0).sum() == 14 and (integers[:, 1:] != 0).mean() > 0.9


@pytest.mark.parametrize("size", [2.0**-120, 2.0**-110, 2.0**-60, 2.0**119])
def test_tiny_and_huge_activations(backend, size):
    weight = random_weight(33, 128, 4, 32)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for rows in (1, 5):
        x = (activations(rows, 128).float() * size).bfloat16()
        assert_same(backend.matmul(x, prepared), x, weight)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_of_either_sign_and_less_than_normal_numbers(backend, bits):
    weight, bias = random_weight(33, 128, bits, 32), torch.linspace(-1, 1, 33).bfloat16()
    prepared = backend.prepare(PackedWeight.pack(weight), bias)
    x = torch.zeros(4, 128)
    x[1], x[2], x[3, 64:] = -0.0, 2.0**-130, 1.0
    y = backend.matmul(x.bfloat16(), prepared)
    assert torch.equal(y[0], bias) and torch.equal(y[1], bias) and torch.equal(y[2], bias)
    assert_same(y[3:], x[3:].bfloat16(), weight, bias)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinity_and_nan_show_in_their_row_alone(backend, bits, value):
    weight = random_weight(33, 128, bits, 32)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    x = activations(3, 128)
    clean = x.clone()
    x[1, 40] = value
    y = backend.matmul(x, prepared)
    assert not y[1].isfinite().any()
    assert torch.equal(y[::2], backend.matmul(clean, prepared)[::2])
    assert not backend.matmul(x[1:2], prepared).isfinite().any()


def test_strided_rows_and_parts(backend):
    grids = [random_weight(n, 128, 3, 64, seed=n) for n in (32, 5)]
    whole = GridWeight(*(torch.cat([getattr(g, part) for g in grids]) for part in ("codes", "zeros", "scales")), 3)
    joined = backend.prepare(JoinedWeight(tuple(PackedWeight.pack(grid) for grid in grids)), None)
    x = activations(6, 256)[::2, :128]
    assert_same(backend.matmul(x, joined), x.contiguous(), whole)


def test_the_matmul_without_int8_stays_exact():
    weight = random_weight(64, 512, 4, 128)
    x, packed = activations(5, 512), PackedWeight.pack(weight)
    backend = CpuBackend()
    exact = backend.matmul(x, backend.prepare(packed, None))
    assert not torch.equal(exact, expected(x, weight))
    assert (exact.double() - reference(x, weight)[0]).abs().max() < 2**-7 * exact.double().abs().max()
