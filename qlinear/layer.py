"""`QLinearPerGrp`: a linear layer whose weight lives on the grouped grid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlinear.backends.base import Backend
from qlinear.errors import TargetError
from qlinear.packing import JoinedWeight, PackedWeight


class QLinearPerGrp(nn.Module):
    """`y = x @ weight.T + bias` with a packed 3- or 4-bit weight.

    As built it holds the checkpoint's tensors, under the checkpoint's names, as buffers: `weight_packed`,
    `weight_zero_point`, `weight_scale`, `weight_shape` and `bias` (see `PackedWeight` for shapes and dtypes).
    `prepare` hands them to a backend, which lays the weight out once, and lets go of them, so that only one copy
    of the weight is held while the model runs.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.w_bit = weight.bits
        self.group_size = weight.group_size
        self.has_bias = bias is not None
        self.register_buffer("weight_packed", weight.words)
        self.register_buffer("weight_zero_point", weight.zeros)
        self.register_buffer("weight_scale", weight.scales)
        self.register_buffer("weight_shape", torch.tensor(weight.shape, dtype=torch.int64))
        self.register_buffer("bias", bias)
        self.backend: Backend | None = None
        self._prepared: Any = None

    @property
    def is_prepared(self) -> bool:
        return self.backend is not None

    @property
    def prepared(self) -> Any:
        """What the backend made of the weight; None before `prepare`."""
        return self._prepared

    def packed(self) -> PackedWeight:
        """The weight in the checkpoint's layout. Raises `RuntimeError` once the layer has been prepared."""
        if self.is_prepared:
            raise RuntimeError("the packed weight was handed to the backend; load the checkpoint again to have it")
        shape = (self.out_features, self.in_features)
        return PackedWeight(self.weight_packed, self.weight_zero_point, self.weight_scale, shape, self.w_bit)

    def prepare(self, backend: Backend, following: Sequence["QLinearPerGrp"] = ()) -> "QLinearPerGrp":
        """Move the weight to `backend`; from here on the layer runs there, and its buffers are gone.

        following: layers over the same input, of the same `w_bit` and `group_size`, whose outputs this one gives too
        from here on, after its own; their buffers are gone as well.
        """
        layers = (self, *following)
        weight = JoinedWeight(tuple(layer.packed() for layer in layers)) if following else self.packed()
        self._prepared = backend.prepare(weight, _joined_bias(layers))
        self.out_features = weight.shape[0]
        self.has_bias = any(layer.has_bias for layer in layers)
        self.weight_shape = torch.tensor(weight.shape, dtype=torch.int64)
        for layer in layers:
            layer.backend = backend
            for name in ("weight_packed", "weight_zero_point", "weight_scale", "bias"):
                setattr(layer, name, None)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`, in the dtype of `x`."""
        if not self.is_prepared:
            raise RuntimeError("QLinearPerGrp.prepare(backend) has to be called before the layer can run")
        return self.backend.matmul(x, self._prepared)

    def tiling(self, rows: int) -> Any:
        """How a prepared layer's hardware cuts and pads a matmul of `rows` rows of activations; `str()` reads well.

        Raises `TargetError` on a backend that runs a matmul as it is: only the NPU's cuts it into kernels.
        """
        if not hasattr(self.backend, "tiling"):
            name = self.backend.name if self.is_prepared else "an unprepared layer"
            raise TargetError(f"{name} runs a matmul as it is and has no tiling of it; use the target aie_emu")
        return self.backend.tiling(rows, self._prepared)

    def extra_repr(self) -> str:
        device = self.backend.name if self.is_prepared else "cpu"
        bias = f"({self.out_features},)" if self.has_bias else "None"
        return (
            f"in_features:{self.in_features}, out_features:{self.out_features}, bias:{bias}, device:{device}, "
            f"w_bit:{self.w_bit} group_size:{self.group_size}"
        )


def _joined_bias(layers: Sequence[QLinearPerGrp]) -> Tensor | None:
    if len(layers) == 1 or not any(layer.has_bias for layer in layers):
        return layers[0].bias
    filled = [
        torch.zeros(layer.out_features, dtype=layer.weight_scale.dtype) if layer.bias is None else layer.bias
        for layer in layers
    ]
    return torch.cat(filled)
