"""Linears on their way to other scales: the codes stand still, and gradients reach the scales through the products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlinear.grid import GridWeight


class FittedScales:
    """The scales of many weights, moved together.

    Kept as logarithms, so that a step moves each by a share of itself and none changes its sign; `logs` and `gradient`,
    of the loss by them, are float32 `(all groups,)`, and every `FittedLinear` has its part of both.
    """

    def __init__(self, weights: Sequence[GridWeight]):
        self._shapes = [weight.scales.shape for weight in weights]
        self.logs = torch.cat([weight.scales.float().log().flatten() for weight in weights])
        self.gradient = torch.zeros_like(self.logs)

    def parts(self, values: Tensor) -> list[Tensor]:
        """Views `(N, groups)` of each weight's part of values `(all groups,)`."""
        sizes = [shape.numel() for shape in self._shapes]
        return [part.view(shape) for part, shape in zip(values.split(sizes), self._shapes, strict=True)]


class FittedLinear:
    """A linear that computes with codes and moving scales.

    Called with `(..., K)` it gives `(..., N)` of the same dtype; products are formed of `dtype` and summed in float32.
    A backward pass adds to `gradient`.
    """

    def __init__(self, weight: GridWeight, logs: Tensor, gradient: Tensor, bias: Tensor | None, dtype: torch.dtype):
        """logs, gradient: this weight's parts of a `FittedScales`, `(N, groups)`; bias: `(N,)` or None."""
        self.logs, self.gradient, self.dtype = logs, gradient, dtype
        self.shape = weight.codes.shape
        levels = weight.codes.to(torch.int8) - weight.zeros.to(torch.int8).repeat_interleave(weight.group_size, 1)
        self.levels = levels.view(*logs.shape, -1)
        self.bias = None if bias is None else bias.float()

    def scales(self) -> Tensor:
        """As they are stored, bfloat16 `(N, groups)`."""
        return self.logs.exp().to(torch.bfloat16)

    def weight(self) -> Tensor:
        """`(N, K)` in `dtype`. A code times a bfloat16 scale is rounded once, in bfloat16 as in float32."""
        return self.levels.to(self.dtype).mul_(self.scales().to(self.dtype).unsqueeze(-1)).view(self.shape)

    def add_gradient(self, of_weight: Tensor) -> None:
        """of_weight: the gradient `(N, K)` by the dequantized weight."""
        by_scale = of_weight.view_as(self.levels).mul(self.levels).sum(-1, dtype=torch.float32)
        self.gradient.addcmul_(by_scale, self.scales().float())

    def __call__(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class _Product(torch.autograd.Function):
    """x times a `FittedLinear`'s weight, which is made anew for each pass: kept, all of them would be the model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: FittedLinear) -> Tensor:
        inputs = x.to(linear.dtype)
        ctx.linear, ctx.given = linear, x.dtype
        ctx.save_for_backward(inputs)
        return inputs @ linear.weight().t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        linear: FittedLinear = ctx.linear
        (inputs,) = ctx.saved_tensors
        gradient = gradients[0].to(linear.dtype)
        rows, columns = gradient.reshape(-1, gradient.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        linear.add_gradient(rows.t() @ columns)
        return (gradient @ linear.weight()).to(ctx.given), None


class FixedLinear:
    """A linear that computes as it is, in products of `dtype`."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        self.matrix = linear.weight.data.to(dtype)
        self.bias = None if linear.bias is None else linear.bias.data.float()

    def __call__(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x.to(self.matrix.dtype), self.matrix).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)
