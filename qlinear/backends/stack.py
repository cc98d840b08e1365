"""A stack of decoder blocks as data: what a backend that runs it as a whole is given, and what it gives back."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Unsupported(Exception):
    """This stack cannot be run as a whole; the message says why."""


@dataclass(frozen=True)
class Dense:
    """A weight `(N, K)` and bias `(N,)` as the model has them."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Packed:
    """What the backend's own `prepare` made of a weight."""

    prepared: Any


Matrix = Dense | Packed

# Weights that read the same input; their outputs lie side by side.
Projection = list[Matrix]


@dataclass(frozen=True)
class Norms:
    """RMS norms of a block: float32 vectors that the normalized value is multiplied by; None: the block has none.

    `(hidden,)`: input before qkv; attention of its output, mlp before gate_up, output of the MLP's, before they join
    the residual. `(head_dim,)`: q and k of every head.
    """

    input: Tensor
    attention: Tensor | None
    mlp: Tensor
    output: Tensor | None
    q: Tensor | None
    k: Tensor | None


@dataclass(frozen=True)
class StackBlock:
    """cosines, sines: `(max_tokens, rotary_dim / 2)` float32; window: positions a query sees, itself too; 0: all."""

    norms: Norms
    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection
    cosines: Tensor
    sines: Tensor
    window: int


@dataclass(frozen=True)
class Stack:
    """A model of pre-norm decoder blocks: attention with rotation, then a gated MLP.

    embedding: `(vocabulary, hidden)`; activation: the config's name of the gate's; a cap of 0: there is none.
    """

    blocks: list[StackBlock]
    embedding: Tensor
    embedding_scale: float
    final_norm: Tensor
    head: Projection
    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    attention_scale: float
    attention_cap: float
    logit_cap: float


class StackDecoder(Protocol):
    """A stack ready to read, with its key/value cache. nbytes: of the cache; device: where logits are wanted."""

    max_tokens: int
    vocabulary: int
    chunk: int
    nbytes: int
    device: torch.device

    def read(self, tokens: Tensor, position: int, out: Tensor) -> None:
        """Read tokens `(count,)` int64 at `position` and on; what was read before `position` is their past.

        out: float32 `(rows, vocabulary)` on `device`, filled with the logits after the last `rows` tokens, which may be
        none.
        """
