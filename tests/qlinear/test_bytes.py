"""Weights of one byte, and their products, against float64 on every instruction set."""

import ctypes

import pytest
import torch

from qlinear.backends.cpu import native, native_decoder
from tests.qlinear.exact import assert_rounded, random


def in_bytes(library, w):
    """A weight `(n, k)` bfloat16 as codes, as the kernels and as rows `(n, k)` have them, and scales."""
    (n, k), groups = w.shape, -(-w.shape[1] // 64)
    codes, scales = torch.full((n, groups, 64), 99, dtype=torch.int8), torch.empty(n, groups, dtype=torch.bfloat16)
    library.awq_to_bytes(w.data_ptr(), n, k, codes.data_ptr(), scales.data_ptr())
    rows = codes.view(n, groups, 16, 2, 2).transpose(2, 3).reshape(n, -1)
    assert not rows[:, k:].any()
    return codes, rows[:, :k], scales


def spread(scales, k):
    return scales.double().repeat_interleave(64, 1)[:, :k]


@pytest.mark.parametrize("n, k", [(1, 32), (5, 8), (35, 72), (300, 576)])
def test_to_bytes(library, n, k):
    """The nearest code on a scale of the largest weight; a group of zeros stays one."""
    w = random(n, k).bfloat16()
    w[0, :64] = 0
    _, codes, scales = in_bytes(library, w)
    groups = torch.nn.functional.pad(w.double(), (0, -k % 64)).view(n, -1, 64)
    exact = groups.abs().amax(-1) / 127
    assert ((scales.double() - exact).abs() <= exact * 2**-8).all()
    step = spread(scales, k)
    error = (codes * step - w.double()).abs()
    assert (error <= 0.5 * step * (1 + 1e-5) + 0.51 * step * (codes.abs() == 127)).all()
    assert codes.abs().max() <= 127 and codes[0, :64].abs().max() == 0 and (codes.abs() > 120).any(-1)[1:].all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_bytes_of_what_is_not_finite_are_not_either(library, value):
    w = random(3, 200).bfloat16()
    w[1, 70] = value
    *_, scales = in_bytes(library, w)
    assert scales.isnan().nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("n, k", [(1, 32), (5, 8), (35, 72), (130, 576), (66, 64)])
def test_dense_in_bytes(library, n, k, biased):
    """Of what the bytes stand for; a row's bits are its own, whatever rows are beside it."""
    codes, rows_of, scales = in_bytes(library, random(n, k).bfloat16())
    bias, x = random(n, seed=2), random(9, k, seed=1).bfloat16()
    weight = native.Weight(None, bias.data_ptr() if biased else None, n, k, 0, 0)
    matrix = ctypes.byref(native_decoder.Matrix(weight, None, codes.data_ptr(), scales.data_ptr()))
    exact = x.double() @ (rows_of * spread(scales, k)).t() + (bias.double() if biased else 0)
    found = []
    for rows in (1, 3, 4, 9):
        y = torch.empty(rows, n, dtype=torch.bfloat16)
        library.awq_dense(matrix, x.data_ptr(), rows, y.data_ptr())
        assert_rounded(y, exact[:rows])
        found.append(y)
    assert all(torch.equal(y, found[-1][: len(y)]) for y in found)
