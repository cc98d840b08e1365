"""`QLinearPerGrp` and the backend that defines its arithmetic, against float64."""

import pytest
import torch

from qlinear.backends import reference
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import TargetError
from qlinear.grid import GridWeight
from qlinear.layer import QLinearPerGrp
from qlinear.packing import JoinedWeight, PackedWeight

BACKEND = ReferenceBackend("cpu/torch")
LEADING_SHAPES = ((), (1,), (5,), (2, 3), (2, 1, 4), (0,), (2, 0, 3))


def random_parts(n: int, k: int, bits: int = 4, group_size: int = 32, bias: torch.dtype | None = None):
    """A packed weight and a bias or None; and both in float64, the bias as 0 where there is none."""
    generator = torch.Generator().manual_seed(n + k)
    codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group_size), generator=generator, dtype=torch.uint8)
    scales = (0.01 + torch.rand(n, k // group_size, generator=generator)).to(torch.bfloat16)
    vector = None if bias is None else torch.randn(n, generator=generator).to(bias)
    spread = [tensor.double().repeat_interleave(group_size, 1) for tensor in (zeros, scales)]
    exact = (codes.double() - spread[0]) * spread[1]
    packed = PackedWeight.pack(GridWeight(codes, zeros, scales, bits))
    return packed, vector, exact, 0 if vector is None else vector.double()


def random_layer(n: int, k: int, bits: int = 4, group_size: int = 32, bias: torch.dtype | None = None):
    """A layer and, in float64, the weight and bias it stands for."""
    packed, vector, exact, exact_bias = random_parts(n, k, bits, group_size, bias)
    return QLinearPerGrp(packed, vector, BACKEND), exact, exact_bias


def assert_close(found, x, weight, bias) -> None:
    """Within the rounding of the result to its dtype and of every term of the float32 sum, whatever its order."""
    exact = x.double() @ weight.t() + bias
    terms = x.double().abs() @ weight.abs().t() + (0 if isinstance(bias, int) else bias.abs())
    unit = torch.finfo(found.dtype).eps / 2
    summed = x.shape[-1] * 2**-24 * terms
    assert ((found.double() - exact).abs() <= 1.01 * unit * exact.abs() + summed).all()


@pytest.mark.parametrize("leading", LEADING_SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [3, 4])
def test_any_leading_shape_against_float64(bits, dtype, leading):
    layer, weight, bias = random_layer(33, 96, bits, bias=torch.bfloat16)
    x = torch.randn(*leading, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(dtype)
    found = layer(x)
    assert found.shape == (*leading, 33) and found.dtype == dtype
    assert_close(found, x, weight, bias)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("bias", [None, torch.bfloat16, torch.float32])
def test_group_sizes_and_biases(bias, group_size):
    layer, weight, vector = random_layer(40, 256, 4, group_size, bias)
    x = torch.randn(3, 256).to(torch.bfloat16)
    assert_close(layer(x), x, weight, vector)


@pytest.mark.parametrize("weights_per_block", [1, 200, 640, 10**6])
def test_rows_are_decoded_in_blocks_of_any_size(weights_per_block, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_WEIGHTS", weights_per_block)
    layer, weight, bias = random_layer(33, 64, bias=torch.float32)
    x = torch.randn(2, 3, 64)
    assert_close(layer(x), x, weight, bias)


def test_an_input_that_is_a_strided_view():
    layer, weight, bias = random_layer(8, 64)
    x = torch.randn(64, 6).t()
    assert_close(layer(x), x, weight, bias)


def test_repr_names_the_backend_and_the_bias():
    layer, _, _ = random_layer(960, 576, group_size=64)
    assert repr(layer) == (
        "QLinearPerGrp(in_features:576, out_features:960, bias:None, device:cpu/torch, w_bit:4 group_size:64)"
    )
    biased, _, _ = random_layer(8, 64, bits=3, bias=torch.bfloat16)
    assert repr(biased) == (
        "QLinearPerGrp(in_features:64, out_features:8, bias:(8,), device:cpu/torch, w_bit:3 group_size:32)"
    )


def test_a_layer_holds_nothing_but_what_the_backend_made():
    """Its one copy of the weight is the backend's own, in a form that only the backend knows."""
    layer, _, _ = random_layer(33, 64, bias=torch.bfloat16)
    assert list(layer.state_dict()) == list(layer.buffers()) == list(layer.parameters()) == []
    assert isinstance(layer.prepared, reference.Prepared) and layer.backend is BACKEND
    assert not [name for name, held in vars(layer).items() if isinstance(held, torch.Tensor | PackedWeight)]


def test_a_backend_keeps_copies_of_what_it_was_lent():
    packed, vector, weight, bias = random_parts(33, 64, bias=torch.float32)
    layer = QLinearPerGrp(packed, vector, BACKEND)
    for tensor in (packed.words, packed.zeros, packed.scales, vector):
        tensor.zero_()
    x = torch.randn(3, 64)
    assert_close(layer(x), x, weight, bias)


def test_a_layer_of_several_weights():
    packed, vectors, weights, biases = zip(*(random_parts(n, 64, bias=torch.float32) for n in (33, 8, 1)), strict=True)
    joined = QLinearPerGrp(JoinedWeight(packed), torch.cat(vectors), BACKEND)
    assert repr(joined).startswith("QLinearPerGrp(in_features:64, out_features:42, bias:(42,), device:cpu/torch")
    x = torch.randn(3, 64)
    assert_close(joined(x), x, torch.cat(weights), torch.cat(biases))


def test_only_hardware_of_fixed_sizes_cuts_a_matmul():
    with pytest.raises(TargetError, match="^cpu/torch runs a matmul as it is, uncut; use the target aie_emu$"):
        random_layer(8, 64)[0].tiling(3)
