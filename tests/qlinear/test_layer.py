"""`QLinearPerGrp` and the backend that defines its arithmetic, against float64."""

import pytest
import torch

from qlinear.backends import reference
from qlinear.backends.reference import ReferenceBackend
from qlinear.grid import GridWeight
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight

BACKEND = ReferenceBackend("cpu/torch")
LEADING_SHAPES = ((), (1,), (5,), (2, 3), (2, 1, 4), (0,), (2, 0, 3))


def random_layer(n: int, k: int, bits: int = 4, group_size: int = 32, bias: torch.dtype | None = None):
    """A layer and, in float64, the weight and bias it stands for."""
    generator = torch.Generator().manual_seed(n + k)
    codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group_size), generator=generator, dtype=torch.uint8)
    scales = (0.01 + torch.rand(n, k // group_size, generator=generator)).to(torch.bfloat16)
    vector = None if bias is None else torch.randn(n, generator=generator).to(bias)
    spread = [tensor.double().repeat_interleave(group_size, 1) for tensor in (zeros, scales)]
    weight = (codes.double() - spread[0]) * spread[1]
    layer = QLinearPerGrp(PackedWeight.pack(GridWeight(codes, zeros, scales, bits)), vector)
    return layer, weight, 0 if vector is None else vector.double()


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
    found = layer.prepare(BACKEND)(x)
    assert found.shape == (*leading, 33) and found.dtype == dtype
    assert_close(found, x, weight, bias)


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("bias", [None, torch.bfloat16, torch.float32])
def test_group_sizes_and_biases(bias, group_size):
    layer, weight, vector = random_layer(40, 256, 4, group_size, bias)
    x = torch.randn(3, 256).to(torch.bfloat16)
    assert_close(layer.prepare(BACKEND)(x), x, weight, vector)


@pytest.mark.parametrize("weights_per_block", [1, 200, 640, 10**6])
def test_rows_are_decoded_in_blocks_of_any_size(weights_per_block, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK_WEIGHTS", weights_per_block)
    layer, weight, bias = random_layer(33, 64, bias=torch.float32)
    x = torch.randn(2, 3, 64)
    assert_close(layer.prepare(BACKEND)(x), x, weight, bias)


def test_an_input_that_is_a_strided_view():
    layer, weight, bias = random_layer(8, 64)
    x = torch.randn(64, 6).t()
    assert_close(layer.prepare(BACKEND)(x), x, weight, bias)


def test_repr():
    layer, _, _ = random_layer(960, 576, group_size=64)
    assert repr(layer) == (
        "QLinearPerGrp(in_features:576, out_features:960, bias:None, device:cpu, w_bit:4 group_size:64)"
    )


def test_repr_of_a_running_layer_names_its_backend_and_its_bias():
    layer, _, _ = random_layer(8, 64, bits=3, bias=torch.bfloat16)
    before = "QLinearPerGrp(in_features:64, out_features:8, bias:(8,), device:{}, w_bit:3 group_size:32)"
    assert repr(layer) == before.format("cpu")
    assert repr(layer.prepare(BACKEND)) == before.format("cpu/torch")


def test_state_dict_has_the_names_and_shapes_of_the_checkpoint():
    layer, _, _ = random_layer(40, 96, bits=3, bias=torch.bfloat16)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in layer.state_dict().items()} == {
        "weight_packed": ((40, 9), torch.int32),
        "weight_zero_point": ((4, 3), torch.int32),
        "weight_scale": ((40, 3), torch.bfloat16),
        "weight_shape": ((2,), torch.int64),
        "bias": ((40,), torch.bfloat16),
    }
    assert layer.state_dict()["weight_shape"].tolist() == [40, 96]
    assert "bias" not in random_layer(40, 96)[0].state_dict()


def test_a_state_dict_makes_the_same_layer():
    layer, weight, bias = random_layer(33, 64, bits=3, bias=torch.float32)
    blank, _, _ = random_layer(33, 64, bits=3, bias=torch.float32)
    for buffer in blank.buffers():
        buffer.zero_()
    blank.load_state_dict(layer.state_dict())
    x = torch.randn(2, 64)
    assert_close(blank.prepare(BACKEND)(x), x, weight, bias)


def test_preparing_lets_go_of_the_packed_weight():
    layer, _, _ = random_layer(33, 64, bias=torch.bfloat16)
    assert not layer.is_prepared
    layer.prepare(BACKEND)
    assert layer.is_prepared
    assert {name for name, _ in layer.named_buffers()} <= {"weight_shape"}
    with pytest.raises(RuntimeError, match="handed to the backend"):
        layer.packed()
    with pytest.raises(RuntimeError, match="handed to the backend"):
        layer.prepare(BACKEND)


def test_a_backend_keeps_copies_of_what_it_was_lent():
    layer, weight, bias = random_layer(33, 64, bias=torch.float32)
    lent = [layer.weight_packed, layer.weight_zero_point, layer.weight_scale, layer.bias]
    layer.prepare(BACKEND)
    for tensor in lent:
        tensor.zero_()
    x = torch.randn(3, 64)
    assert_close(layer(x), x, weight, bias)


def test_a_layer_that_takes_others_in():
    layers, weights, biases = zip(*(random_layer(n, 64, bias=torch.float32) for n in (33, 8, 1)), strict=True)
    joined = layers[0].prepare(BACKEND, layers[1:])
    assert joined is layers[0] and joined.weight_shape.tolist() == [42, 64]
    assert repr(joined).startswith("QLinearPerGrp(in_features:64, out_features:42, bias:(42,), device:cpu/torch")
    x = torch.randn(3, 64)
    assert_close(joined(x), x, torch.cat(weights), torch.cat(biases))
    assert all({name for name, _ in layer.named_buffers()} <= {"weight_shape"} for layer in layers)


def test_an_unprepared_layer_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"prepare\(backend\) has to be called"):
        random_layer(8, 64)[0](torch.randn(64))
