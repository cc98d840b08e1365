"""The cuda kernels against float64: within 1e-5 before the output is rounded, and the same bits twice."""

import copy
import pickle

import pytest
import torch

from qlinear.backends.cuda.backend import MOST_ROWS
from qlinear.packing import JoinedWeight, PackedWeight
from tests.qlinear.cuda.launchers import WHERE, backend_on
from tests.qlinear.exact import random_weight, reference


@pytest.fixture(scope="module", params=WHERE)
def backend(request):
    return backend_on(request.param)


def activations(rows, k, seed=1):
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def multiply(backend, x, prepared):
    return backend.matmul(x.to(backend.device), prepared).cpu()


def assert_exact(y, x, weight, bias=None):
    """Within one rounding to bfloat16, and before it within 1e-5 of the whole."""
    exact, _ = reference(x, weight, bias)
    assert y.dtype == x.dtype and y.shape == exact.shape
    excess = (y.double() - exact).abs() - 2**-8 * exact.abs() - 1e-5 * exact.square().mean().sqrt()
    assert excess.max() <= 0, f"off by {excess.max():.3g} more than rounding explains"


def unpacked(backend, prepared, dtype=torch.float32):
    found = torch.full(prepared.shape, float("nan"), dtype=dtype, device=backend.device)
    backend.unpack(prepared, 0, found)
    return found.cpu()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("n, k, group", [(16, 64, 64), (40, 96, 32), (7, 512, 256), (33, 640, 128), (1, 32, 32)])
def test_packing_keeps_every_code(backend, n, k, group, bits):
    weight = random_weight(n, k, bits, group)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    assert torch.equal(unpacked(backend, prepared), weight.dequantize())
    assert torch.equal(unpacked(backend, prepared, torch.bfloat16), weight.dequantize(torch.bfloat16))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("sizes", [(32, 16, 16), (16, 48, 5), (20, 7, 13)])
def test_joined_weights_are_those_of_all_parts_in_order(backend, sizes, bits):
    weight = random_weight(sum(sizes), 192, bits, 64)
    joined = JoinedWeight(tuple(PackedWeight.pack(part) for part in weight.split(sizes)))
    assert torch.equal(unpacked(backend, backend.prepare(joined, None)), weight.dequantize())


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16, 17, MOST_ROWS])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("n, k, group", [(40, 96, 32), (33, 1088, 64), (16, 384, 128), (70, 2304, 256)])
def test_products(backend, n, k, group, bits, rows):
    weight, x = random_weight(n, k, bits, group), activations(rows, k)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(2)) if rows % 2 == 0 else None
    prepared = backend.prepare(PackedWeight.pack(weight), bias)
    y = multiply(backend, x, prepared)
    assert_exact(y, x, weight, bias)
    assert torch.equal(multiply(backend, x, prepared), y)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_block_takes_tile_after_tile(backend, rows):
    """More tiles than blocks: what is copied ahead is of the tiles that come next, and warps go round."""
    weight, x = random_weight(400, 704, 4, 64), activations(rows, 704)
    assert_exact(multiply(backend, x, backend.prepare(PackedWeight.pack(weight), None)), x, weight)


def test_large_means_cost_nothing(backend):
    """The zero point is taken out of every weight, not out of sums that all but cancel."""
    weight, x = random_weight(48, 512, 3, 128), activations(1, 512) + 100
    assert_exact(multiply(backend, x, backend.prepare(PackedWeight.pack(weight), None)), x, weight)


@pytest.mark.parametrize("dtype, rows", [(torch.float32, 3), (torch.float16, 3), (torch.bfloat16, MOST_ROWS + 1)])
def test_what_the_kernels_do_not_take_is_multiplied_unpacked(backend, dtype, rows):
    weight, bias = random_weight(50, 256, 4, 64), torch.randn(50, generator=torch.Generator().manual_seed(2))
    x = activations(rows, 256).to(dtype)
    y = multiply(backend, x, backend.prepare(PackedWeight.pack(weight), bias))
    exact, _ = reference(x, weight, bias)
    allowed = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert y.dtype == dtype and (y.double() - exact).norm() < allowed * exact.norm()


def test_panels_are_put_together(backend, monkeypatch):
    monkeypatch.setattr("qlinear.backends.cuda.backend.PANEL_BYTES", 4 * 256 * 32)
    weight, x = random_weight(77, 256, 3, 64), torch.randn(2, 256)
    exact, _ = reference(x, weight)
    y = multiply(backend, x, backend.prepare(PackedWeight.pack(weight), None))
    assert (y.double() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (1,), (), (3, 2)])
def test_any_leading_shape(backend, shape):
    weight = random_weight(24, 128, 4, 32)
    x = activations(6, 128)[: max(1, torch.Size(shape).numel())].view(-1)[: torch.Size(shape).numel() * 128]
    y = multiply(backend, x.view(*shape, 128), backend.prepare(PackedWeight.pack(weight), None))
    assert y.shape == (*shape, 24)
    assert_exact(y.view(-1, 24), x.view(-1, 128), weight) if y.numel() else None


def test_activations_may_lie_anyhow(backend):
    """Rows apart, or at an address that no 16-byte load takes."""
    weight, wide = random_weight(24, 128, 4, 64), activations(4, 257)
    prepared = backend.prepare(PackedWeight.pack(weight), None)
    for x in (wide[:, :128], wide[:, 1:129], wide[1:2, 3:131]):
        assert_exact(multiply(backend, x, prepared), x, weight)


def test_activations_of_another_width(backend):
    prepared = backend.prepare(PackedWeight.pack(random_weight(24, 128, 4, 64)), None)
    with pytest.raises(ValueError, match="activations have 64 features, the weight has 128"):
        multiply(backend, activations(1, 64), prepared)


def test_a_copied_or_pickled_weight_owns_its_memory(backend):
    weight, x = random_weight(33, 128, 4, 64), activations(2, 128)
    prepared = backend.prepare(PackedWeight.pack(weight), torch.ones(33))
    twins = copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))
    prepared.packed.zero_()
    for twin in twins:
        assert_exact(multiply(backend, x, twin), x, weight, torch.ones(33))


@pytest.mark.parametrize("bits, group, expected", [(4, 64, 4.375), (3, 64, 3.375), (3, 128, 3.1875), (4, 32, 4.75)])
def test_bits_of_a_weight(backend, bits, group, expected):
    prepared = backend.prepare(PackedWeight.pack(random_weight(64, 512, bits, group)), None)
    assert prepared.nbytes * 8 / (64 * 512) == expected
