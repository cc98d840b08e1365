"""What a target has to do. Nothing else in the program asks which hardware it runs on."""

from typing import Any, Protocol

import torch
from torch import Tensor

from qlinear.packing import JoinedWeight, PackedWeight


class Backend(Protocol):
    """One way to multiply by a grouped 3- or 4-bit weight.

    name: what results call it, precise enough to tell which code ran ("cpu/torch", "aie (emulated on cpu)").
    device: where the activations and the rest of the model have to be.
    joins_gate_up: whether one matmul for gate and up is faster than two; for q, k and v it always is.
    """

    name: str
    device: torch.device
    joins_gate_up: bool

    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> Any:
        """Lay the weight out for the hardware, once; what it returns belongs to `matmul` alone.

        `bias` is `(N,)` of any float dtype, or None. Both are lent, as views of a file it may be: what is kept of them
        is a copy.
        """

    def matmul(self, x: Tensor, prepared: Any) -> Tensor:
        """`x @ weight.T + bias`: `(..., K)` in, `(..., N)` out, both of the dtype of `x`.

        Exact products of bfloat16 activations, accumulated in float32; any leading shape, empty ones included.
        """

    def meter(self) -> "Meter | None":
        """Counts what hardware that is only emulated would have done; None where what runs is what is there."""


class Meter(Protocol):
    """Keeps count of what hardware that is not there would have done in every matmul of its backend.

    counters: totals so far; an earlier value subtracted from a later one tells what came in between.
    latency: the figures behind `counters.modelled_seconds`; `rows()` lists them with their units and sources.
    """

    counters: Any
    latency: Any
