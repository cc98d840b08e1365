"""Quantized layers in a model, alone and joined."""

import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from torch import nn

from qlinear.backends.reference import ReferenceBackend
from qlinear.grid import Grid
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight
from qlinear.replace import LinearWeight, quantized_layers, replace_linears
from qlinear.solvers.rtn import rtn

BACKEND = ReferenceBackend("cpu/torch")
SIZES = {"q": 48, "k": 7, "v": 33}
GROUP = tuple(SIZES)


def quantized(linear: nn.Linear, bits: int = 4, group_size: int = 32) -> LinearWeight:
    bias = None if linear.bias is None else linear.bias.data.to(torch.bfloat16)
    return LinearWeight(PackedWeight.pack(rtn(linear.weight.data, Grid(bits, group_size))), bias)


def attention(biased: tuple[str, ...] = ()) -> nn.Module:
    """Three linears of different size over the same 64 inputs."""
    torch.manual_seed(0)
    module = nn.Module()
    for name, size in SIZES.items():
        module.add_module(name, nn.Linear(64, size, bias=name in biased))
    return module


def separate_and_joined(**options) -> tuple[nn.Module, nn.Module]:
    separate = attention(**options)
    weights = {name: quantized(linear) for name, linear in separate.named_children()}
    joined = deepcopy(separate)
    for name in GROUP:
        replace_linears(separate, {name: weights[name]}, BACKEND)
    replace_linears(joined, weights, BACKEND)
    return separate, joined


def assert_same(separate: nn.Module, joined: nn.Module, name: str, x: torch.Tensor) -> None:
    """The same arithmetic; only the order of the float32 sums is the matmul library's own."""
    expected, found = separate.get_submodule(name)(x), joined.get_submodule(name)(x)
    assert found.shape == expected.shape == (*x.shape[:-1], SIZES[name])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def count_matmuls(joined: nn.Module) -> list:
    calls = []
    (layer,) = quantized_layers(joined).values()
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("biased", [(), GROUP, ("k",)])
def test_joined_layers_give_what_separate_ones_give(biased, leading):
    separate, joined = separate_and_joined(biased=biased)
    calls = count_matmuls(joined)
    x = torch.randn(*leading, 64)
    for name in GROUP:
        assert_same(separate, joined, name, x)
    assert len(calls) == 1


# What is called, in which order, on which input.
CALLS = {
    "interleaved": "q0 q1 k0 k1 v1 v0",
    "another input in between": "q0 k1 v1 q1 k0 v0",
    "one never called": "q0 k0 q1 k1 q0 k0",
    "any first": "v0 q0 k0 k1 v1 q1",
    "one called again": "q0 q0 k0 q0 v0 k0",
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_calls_in_any_order(calls):
    separate, joined = separate_and_joined(biased=("v",))
    inputs = [torch.randn(2, 64), torch.randn(3, 64)]
    for call in calls.split():
        assert_same(separate, joined, call[0], inputs[int(call[1])])


def test_one_buffer_written_anew_for_each_step():
    """Its identity stays, its content does not: a result left from the step before must not come back."""
    separate, joined = separate_and_joined()
    x = torch.empty(1, 64)
    for step in range(3):
        x.copy_(torch.randn(1, 64, generator=torch.Generator().manual_seed(step)))
        for name in GROUP:
            assert_same(separate, joined, name, x)


def test_results_are_let_go_of_when_all_are_taken():
    _, joined = separate_and_joined()
    x = torch.randn(2, 64)
    alive = [weakref.ref(x)]
    alive += [weakref.ref(joined.get_submodule(name)(x)) for name in GROUP]
    del x
    assert [ref() for ref in alive] == [None] * 4


def test_threads_take_their_own_results():
    """Two texts written at once by one model: neither reads what is the other's, nor has it computed anew."""
    separate, joined = separate_and_joined()
    calls = count_matmuls(joined)
    inputs = [torch.randn(2, 64), torch.randn(3, 64)]
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for name in GROUP:
            for thread, x in zip((first, second), inputs, strict=True):
                thread.submit(assert_same, separate, joined, name, x).result()
    assert len(calls) == 2


def test_threads_at_once():
    separate, joined = separate_and_joined()

    def client(rows):
        for step in range(200):
            x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(step))
            for name in GROUP:
                assert_same(separate, joined, name, x)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(client, (1, 2, 40)))
    finally:
        sys.setswitchinterval(interval)


def test_members_keep_their_sizes_and_one_layer_holds_the_weight():
    _, joined = separate_and_joined()
    assert [(m.in_features, m.out_features) for m in joined.children()] == [(64, size) for size in SIZES.values()]
    (layer,) = quantized_layers(joined).values()
    assert (layer.in_features, layer.out_features) == (64, sum(SIZES.values()))


@pytest.mark.parametrize("other", [dict(bits=3), dict(group_size=64)])
def test_layers_of_other_bits_or_group_size_stay_apart(other):
    module = attention()
    weights = {name: quantized(linear, **(other if name == "k" else {})) for name, linear in module.named_children()}
    replace_linears(module, weights, BACKEND)
    layers = quantized_layers(module)
    assert list(layers) == list(GROUP)
    for name, layer in layers.items():
        grid = weights[name].weight.unpack()
        assert (layer.w_bit, layer.group_size) == (grid.bits, grid.group_size)
        spread = [part.double().repeat_interleave(grid.group_size, 1) for part in (grid.zeros, grid.scales)]
        exact = ((grid.codes.double() - spread[0]) * spread[1]).float()
        torch.testing.assert_close(layer(torch.eye(64)), exact.t(), rtol=0, atol=1e-6)


def test_only_the_named_linears_are_replaced():
    model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(64, 8))
    second = model[1]
    replace_linears(model, {"0": quantized(model[0])}, BACKEND)
    assert isinstance(model[0], QLinearPerGrp) and model[1] is second
    assert quantized_layers(model) == {"0": model[0]}


def test_a_weight_of_another_shape_is_refused_and_nothing_replaced():
    module = attention()
    before = dict(module.named_children())
    weights = {name: quantized(linear) for name, linear in before.items()}
    weights["v"] = quantized(nn.Linear(64, 9))
    with pytest.raises(ValueError, match="^v is 33x64, its quantized form 9x64$"):
        replace_linears(module, weights, BACKEND)
    assert dict(module.named_children()) == before
