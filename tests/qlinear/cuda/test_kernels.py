"""The cuda kernels, run on the CPU, against float64: before anything is rounded, but for the output."""

import pytest
import torch

from qlinear.backends.cuda.backend import CudaBackend
from qlinear.packing import JoinedWeight, PackedWeight
from tests.qlinear.cuda.on_cpu import CpuLauncher
from tests.qlinear.exact import random_weight, reference

BACKEND = CudaBackend(CpuLauncher())


def activations(rows, k, seed=1):
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_exact(y, x, weight, bias=None):
    """Within one rounding to bfloat16, and before it within 1e-5 of the whole."""
    exact, _ = reference(x, weight, bias)
    assert y.dtype == x.dtype and y.shape == exact.shape
    excess = (y.double() - exact).abs() - 2**-8 * exact.abs() - 1e-5 * exact.square().mean().sqrt()
    assert excess.max() <= 0, f"off by {excess.max():.3g} more than rounding explains"


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("n, k, group", [(16, 64, 64), (40, 96, 32), (7, 512, 256), (33, 640, 128), (1, 32, 32)])
def test_packing_keeps_every_code(n, k, group, bits):
    weight = random_weight(n, k, bits, group)
    prepared = BACKEND.prepare(PackedWeight.pack(weight), None)
    found = torch.full((n, k), float("nan"))
    BACKEND.unpack(prepared, 0, found)
    assert torch.equal(found, weight.dequantize())


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("n, k, group", [(40, 96, 32), (33, 1088, 64), (16, 384, 128), (70, 2304, 256)])
def test_products(n, k, group, bits, rows):
    weight, bias, x = random_weight(n, k, bits, group), torch.randn(n), activations(rows, k)
    biased = rows % 2 == 0
    prepared = BACKEND.prepare(PackedWeight.pack(weight), bias if biased else None)
    y = BACKEND.matmul(x, prepared)
    assert_exact(y, x, weight, bias if biased else None)
    assert torch.equal(BACKEND.matmul(x, prepared), y)
