"""The product in float32: what its decoders make of a checkpoint when nothing is rounded."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkpoints.quantized import open_quantized
from qlinear.backends.base import Backend
from qlinear.packing import JoinedWeight, PackedWeight


class Float32Backend(Backend):
    """Weights dequantized once; products in float32, of activations as they come."""

    name = "float32"
    device = torch.device("cpu")

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.unpack().dequantize(), None if bias is None else bias.to(torch.float32, copy=True)

    def matmul(self, x: Tensor, prepared: tuple[Tensor, Tensor | None]) -> Tensor:
        return F.linear(x.to(torch.float32), *prepared).to(x.dtype)


def open_exact(directory: Path) -> nn.Module:
    return open_quantized(directory, Float32Backend(), flash_attention=False).module.float()
