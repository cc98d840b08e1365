"""What a target has to do. Nothing else in the program asks which hardware it runs on."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from qlinear.backends.stack import Stack, StackDecoder, Unsupported
from qlinear.backends.widths import Widths
from qlinear.errors import TargetError
from qlinear.packing import JoinedWeight, PackedWeight


class Meter(Protocol):
    """Of hardware that is only emulated: the count of what it would have done.

    counters: totals so far; an earlier value subtracted from a later one tells what came in between.
    latency: the figures behind `counters.modelled_seconds`; `rows()` lists them with their units and sources.
    """

    counters: Any
    latency: Any


class Backend(ABC):
    """One way to multiply by a grouped 3- or 4-bit weight.

    name: what results call it, precise enough to tell which code ran ("cpu/torch", "aie (emulated on cpu)").
    device: where the activations and the rest of the model have to be.
    joins_gate_up: whether one matmul for gate and up is faster than two; for q, k and v it always is.
    float_target: the target that a float model runs on to be compared with what runs here; None: this one.
    widths: of what its `decoder` holds.
    """

    name: str
    device: torch.device
    joins_gate_up: bool = True
    float_target: str | None = None
    widths: Widths = Widths()

    @abstractmethod
    def prepare(self, weight: PackedWeight | JoinedWeight, bias: Tensor | None) -> Any:
        """Lay the weight out for the hardware, once; what it returns belongs to `matmul` and `decoder` alone.

        `bias` is `(N,)` of any float dtype, or None. Both are lent, as views of a file it may be: what is kept of them
        is a copy.
        """

    @abstractmethod
    def matmul(self, x: Tensor, prepared: Any) -> Tensor:
        """`x @ weight.T + bias`: `(..., K)` in, `(..., N)` out, both of the dtype of `x`.

        Exact products of bfloat16 activations, accumulated in float32; any leading shape, empty ones included.
        """

    def decoder(self, stack: Stack, max_tokens: int, chunk: int, slots: int = 1) -> StackDecoder:
        """A whole stack at once, with a cache of `max_tokens` positions for each of as many texts as there are slots,
        reading at most `chunk` tokens in one call.

        Raises `Unsupported` with the reason where there is none for this stack.
        """
        raise Unsupported(f"{self.name} runs layer by layer")

    def meter(self) -> Meter | None:
        """Where the hardware is only emulated, what counts for it; it has to see every matmul."""
        return None

    def tiling(self, rows: int, prepared: Any) -> Any:
        """How a matmul of `rows` rows would be cut up and padded; `str()` reads well.

        Raises `TargetError` where nothing is cut: only the NPU's kernels come in fixed sizes.
        """
        raise TargetError(f"{self.name} runs a matmul as it is, uncut; use the target aie_emu")
