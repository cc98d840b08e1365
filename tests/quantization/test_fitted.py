"""Products of codes with moving scales, and the gradient that reaches these, against float64 written here."""

import pytest
import torch

from qlinear.grid import Grid
from quantization.fitted import FittedLinear, FittedScales, FixedLinear

# Relative to the largest value: of products in float32, and in bfloat16 with its eight bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}


def on_a_grid(bits: int, rows: int, columns: int, group_size: int):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    grid = Grid(bits, group_size)
    return grid.quantize(weight, *grid.fit(weight))


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    return (found.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("bits", "group_size", "bias"), [(3, 32, False), (4, 64, True)])
def test_product_and_gradients(dtype, bits, group_size, bias):
    weights = [on_a_grid(bits, 7, 128, group_size), on_a_grid(bits, 33, 128, group_size)]
    fitted = FittedScales(weights)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 128, generator=generator)
    for index, weight in enumerate(weights):
        n = len(weight.codes)
        added = torch.randn(n, generator=generator) if bias else None
        logs, gradient = (fitted.parts(values)[index] for values in (fitted.logs, fitted.gradient))
        linear = FittedLinear(weight, logs, gradient, added, dtype)
        given = x.clone().requires_grad_()
        out = linear(given)
        back = torch.randn(2, 5, n, generator=generator)
        out.backward(back)

        scales = weight.scales.double().requires_grad_()
        levels = (weight.codes.double() - weight.zeros.double().repeat_interleave(group_size, 1)).view(
            n, -1, group_size
        )
        wide = x.double().requires_grad_()
        expected = wide @ (levels * scales.unsqueeze(-1)).view(n, 128).t() + (added.double() if bias else 0)
        expected.backward(back.double())
        assert out.dtype == torch.float32 and given.grad.dtype == torch.float32
        assert close(out, expected.detach(), dtype) and close(given.grad, wide.grad, dtype)
        assert close(gradient, scales.grad * scales.detach(), dtype)
    assert fitted.gradient.abs().min() > 0, "every part is somebody's"


def test_gradients_add_up_and_scales_move_with_their_logarithms():
    weight = on_a_grid(3, 5, 64, 32)
    fitted = FittedScales([weight])
    linear = FittedLinear(weight, *fitted.parts(fitted.logs), *fitted.parts(fitted.gradient), None, torch.float32)
    x = torch.randn(3, 64, requires_grad=True)
    linear(x).sum().backward()
    once = fitted.gradient.clone()
    linear(x).sum().backward()
    assert torch.allclose(fitted.gradient, 2 * once)
    assert torch.equal(linear.scales(), weight.scales) and torch.equal(linear.weight(), weight.dequantize())
    fitted.logs += torch.log(torch.tensor(2.0))
    assert torch.equal(linear.scales(), 2 * weight.scales)


def test_a_linear_that_stays():
    linear = torch.nn.Linear(16, 8)
    x = torch.randn(4, 16, requires_grad=True)
    fixed = FixedLinear(linear, torch.float32)
    assert torch.allclose(fixed(x), linear(x)) and fixed(x).requires_grad
    assert FixedLinear(linear, torch.bfloat16)(x).dtype == torch.float32
