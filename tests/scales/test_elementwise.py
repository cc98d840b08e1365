"""Activation functions on any number of threads."""

import pytest
import torch
from torch import nn

from scales.calls import Call
from scales.elementwise import whole_length

FUNCTIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu of tanh": nn.GELU("tanh"),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(),
    "mish": nn.Mish(),
    "elu": nn.ELU(0.5),
    "method": lambda x: x.sigmoid(),
    "in place": nn.SiLU(inplace=True),
}
THREADS = (1, 2, 3, 5, 8, 24)


@pytest.fixture
def threads():
    """Sets their number, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def with_gradient(module, x):
    x = x.clone().requires_grad_()
    out = module(x * 1)
    out.sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 33, 5001), (1, 7, 11), (3, 171, 513)], ids=str)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "in place"])
def test_give_the_same(threads, name, shape, dtype):
    x = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    module = FUNCTIONS[name]
    exact = module(x.double())
    for number in THREADS:
        threads(number)
        out, gradient = with_gradient(lambda x: Call((), {})(module, x), x)
        if number == 1:
            first = out, gradient
        assert torch.equal(out, first[0]) and torch.equal(gradient, first[1]), number
    assert out.shape == x.shape and out.dtype == dtype
    assert (out.double() - exact).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


def test_torch_alone_does_not(threads):
    """Else all this is for nothing."""
    x = 3 * torch.randn(1, 33, 5001, generator=torch.Generator().manual_seed(0))
    threads(1)
    one = FUNCTIONS["softplus"](x)
    threads(7)
    assert not torch.equal(FUNCTIONS["softplus"](x), one)


def test_a_part_of_a_tensor_and_in_place():
    x = torch.randn(1, 200, 300, generator=torch.Generator().manual_seed(1))
    gate, _ = x.chunk(2, -1)
    assert torch.allclose(Call((), {})(nn.SiLU(), gate), gate * gate.sigmoid(), atol=1e-6)
    wanted = x * x.sigmoid()
    assert Call((), {})(FUNCTIONS["in place"], x) is x
    assert torch.allclose(x, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("numel", "threads", "length"),
    [(1, 1, 64), (64, 8, 512), (786432, 2, 786432), (786433, 1, 786496), (786432, 5, 786560), (800016, 64, 819200)],
)
def test_the_length_cuts_into_whole_vectors(numel, threads, length):
    assert whole_length(numel, threads) == length
    for pieces in (threads, min(threads, -(-length // 32768))):
        assert -(-length // pieces) % 64 == 0
