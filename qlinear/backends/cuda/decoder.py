"""A stack on the GPU: a token is one list of launches, replayed as a graph; prompts go through torch in chunks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from qlinear.backends.base import Backend
from qlinear.backends.cuda.launch import Launcher
from qlinear.backends.cuda.prefill import Prefill
from qlinear.backends.cuda.step import ACTIVATIONS, Step
from qlinear.backends.cuda.structs import MOST_FEATURES, MOST_HIDDEN
from qlinear.backends.stack import Mixture, PlainMlp, Reading, Stack, Unsupported


class CudaDecoder:
    """`qlinear.backends.stack.StackDecoder`; not for use from two threads at once. Weights are read in place.

    step: what a single token goes through.
    """

    same_in_any_cut = False  # several tokens go through torch

    def __init__(self, backend: Backend, launcher: Launcher, stack: Stack, max_tokens: int, chunk: int):
        """Raises `Unsupported` for a stack that the kernels do not take."""
        check(stack)
        self.max_tokens, self.vocabulary, self.chunk, self.slots = max_tokens, stack.vocabulary, chunk, 1
        self._device = backend.device
        shape = len(stack.blocks), 2, stack.kv_heads, max_tokens, stack.head_dim
        cache = torch.zeros(shape, dtype=torch.bfloat16, device=self._device)
        self.nbytes = cache.nbytes
        self._launcher = launcher
        self.step = Step(launcher, stack, cache)
        self._prefill = Prefill(backend, stack, cache)
        self._run: Callable[[], None] | None = None

    def read(self, readings: Sequence[Reading], out: np.ndarray) -> None:
        (reading,) = readings
        tokens, position = reading.tokens, reading.position
        given = torch.from_numpy(out)
        if len(tokens) > 1:
            self._prefill.read(torch.from_numpy(tokens).to(self._device), position, given)
            return
        self.step.given[:] = int(tokens[0]), position
        if self._run is None:
            self._run = self._launcher.record(self.step.run)
        self._run()
        if len(out):
            given.copy_(self.step.logits)
        else:
            self._launcher.finish()  # before what was given is written over

    def copy(self, source: int, target: int, count: int) -> None:
        """Of one slot there is nothing to copy."""


def check(stack: Stack) -> None:
    if any(isinstance(block.mlp, Mixture) for block in stack.blocks):
        raise Unsupported("the fused decoder on cuda does not run mixtures of experts")
    if any(isinstance(block.mlp, PlainMlp) for block in stack.blocks):
        raise Unsupported("the fused decoder on cuda takes gated MLPs")
    if stack.parallel:
        raise Unsupported("the fused decoder on cuda does not run attention and MLP side by side")
    if stack.layer_norm or any(block.norms.input is None or block.norms.mlp is None for block in stack.blocks):
        raise Unsupported("the fused decoder on cuda takes blocks with RMS norms before attention and MLP")
    if stack.turned_first:
        raise Unsupported("the fused decoder on cuda does not norm heads after the rotation")
    if stack.interleaved:
        raise Unsupported("the fused decoder on cuda does not turn neighbouring features")
    if any(norm is not None and norm.numel() > stack.head_dim for b in stack.blocks for norm in (b.norms.q, b.norms.k)):
        raise Unsupported("the fused decoder on cuda does not norm all heads together")
    if stack.activation not in ACTIVATIONS:
        raise Unsupported(f"the fused decoder does not know the activation {stack.activation}")
    if stack.head_dim % 8 or stack.head_dim > MOST_FEATURES:
        raise Unsupported(
            f"the fused decoder on cuda takes heads of up to {MOST_FEATURES} features, a multiple of 8; this model has "
            f"{stack.head_dim}"
        )
    if stack.hidden % 8 or stack.hidden > MOST_HIDDEN:
        raise Unsupported(
            f"the fused decoder on cuda takes a hidden size of up to {MOST_HIDDEN}, a multiple of 8; this model has "
            f"{stack.hidden}"
        )
