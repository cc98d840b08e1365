"""The cuda target on `humming-kernels`, where it is installed: kernels of others behind the same interface."""

import importlib.util
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from qlinear.backends.base import Backend
from qlinear.errors import TargetError
from qlinear.packing import JoinedWeight, PackedWeight

PACKAGE = "humming"
ROWS = 32  # of a weight: its zero points fill whole words


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


class HummingBackend(Backend):
    """`qlinear.backends.base.Backend` on humming's dense layers; bfloat16 activations.

    Raises `TargetError` where the package is not installed.
    """

    def __init__(self) -> None:
        if not is_installed():
            raise TargetError("humming-kernels are not installed: pip install 'run-awq[cuda]'")
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = f"cuda/humming-kernels {version('humming-kernels')}"

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> Any:
        """A layer of humming's. Raises `TargetError` for a weight whose rows are no multiple of `ROWS`."""
        from humming.layer import HummingLayer

        whole = weight.concat() if isinstance(weight, JoinedWeight) else weight
        n, k = whole.shape
        if n % ROWS:
            raise TargetError(f"humming-kernels take weights of a multiple of {ROWS} rows; this one has {n}")
        grid = dict(dtype=f"uint{whole.bits}", group_size=whole.group_size, has_zero_point=True)
        layer = HummingLayer(n, k, grid, has_bias=bias is not None, torch_dtype=torch.bfloat16).to(self.device)
        tensors = dict(weight=whole.words, weight_scale=whole.scales, zero_point=whole.zeros)
        if bias is not None:
            tensors["bias"] = bias.to(torch.bfloat16)
        layer.load_from_tensors({name: tensor.to(self.device) for name, tensor in tensors.items()})
        layer.transform()
        return layer

    def matmul(self, x: Tensor, prepared: Any) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 0:
            return x.new_empty(*x.shape[:-1], prepared.shape_n)
        y = prepared(rows.to(torch.bfloat16).contiguous())
        return y.to(x.dtype).view(*x.shape[:-1], -1)
