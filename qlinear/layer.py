"""`QLinearPerGrp`: a linear layer whose weight lives on the grouped grid, laid out for the hardware it runs on."""

from typing import Any

from torch import Tensor, nn

from qlinear.backends.base import Backend
from qlinear.packing import JoinedWeight, PackedWeight


class QLinearPerGrp(nn.Module):
    """`y = x @ weight.T + bias` with a packed 3- or 4-bit weight.

    The weight goes to the backend as the layer is made, which lays it out once; the layer keeps nothing else of it, so
    that only one copy is held while the model runs. weight: lent, a view of a file it may be; bias: `(N,)` or None.

    prepared: what the backend made of the weight.
    """

    def __init__(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None, backend: Backend):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.w_bit = weight.bits
        self.group_size = weight.group_size
        self.has_bias = bias is not None
        self.backend = backend
        self.prepared: Any = backend.prepare(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`, in the dtype of `x`."""
        return self.backend.matmul(x, self.prepared)

    def tiling(self, rows: int) -> Any:
        """How the layer's hardware would cut up a matmul of `rows` rows of activations; see `Backend.tiling`."""
        return self.backend.tiling(rows, self.prepared)

    def extra_repr(self) -> str:
        bias = f"({self.out_features},)" if self.has_bias else "None"
        return (
            f"in_features:{self.in_features}, out_features:{self.out_features}, bias:{bias}, "
            f"device:{self.backend.name}, w_bit:{self.w_bit} group_size:{self.group_size}"
        )
