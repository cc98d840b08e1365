"""A stack of decoder blocks as data: what a backend that runs it as a whole is given, and what it gives back.

Nothing here needs torch. An `Array` is one of numpy's, in which bfloat16 lies as the uint16 of its bits, or a tensor of
torch's, on whatever device the backend runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

Array = Any


class Unsupported(Exception):
    """This stack cannot be run as a whole; the message says why."""


@dataclass(frozen=True)
class Dense:
    """A weight `(N, K)` and bias `(N,)` as the model has them."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Packed:
    """What the backend's own `prepare` made of a weight."""

    prepared: Any


Matrix = Dense | Packed

# Weights that read the same input; their outputs lie side by side.
Projection = list[Matrix]


@dataclass(frozen=True)
class Norms:
    """Norms of a block: float32 vectors that the normalized value is multiplied by; None: the block has none.

    `(hidden,)`: input before qkv; attention of its output, mlp before gate_up, output of the MLP's, before they join
    the residual. q and k: `(head_dim,)`, of every head, or `(heads * head_dim,)`, of all of a token's heads together.
    input_bias, mlp_bias: `(hidden,)`, added to what input and mlp give, in a stack of layer norms.
    """

    input: Array | None
    attention: Array | None
    mlp: Array | None
    output: Array | None
    q: Array | None
    k: Array | None
    input_bias: Array | None = None
    mlp_bias: Array | None = None


@dataclass(frozen=True)
class GatedMlp:
    """activation(gate) * up, and down."""

    gate_up: Projection
    down: Projection


@dataclass(frozen=True)
class PlainMlp:
    """activation(up), and down.

    curve: what xIELU goes by, one value each: the alphas above and below 0, before the softplus, beta and epsilon; else
    empty.
    """

    up: Projection
    down: Projection
    curve: Sequence[Array] = ()


class Scoring(Enum):
    """What makes scores of the router's logits. A softmax of the chosen alone is one of all, normalized."""

    SOFTMAX = 0
    SIGMOID = 1


@dataclass(frozen=True)
class Routing:
    """How a token chooses `top_k` experts, and what theirs count for: their scores times `scaling`.

    normalized: the scores of the chosen are first divided by their sum, or by `least_sum` if that is more. groups:
    experts lie in as many groups of one size, and only those of the `top_groups` best are chosen from; a group is worth
    its two best.
    """

    scoring: Scoring
    top_k: int
    normalized: bool = True
    scaling: float = 1.0
    least_sum: float = 1e-20
    groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True)
class Router:
    """logits: `(experts, hidden)`; correction: `(experts,)`, added to the scores where they are compared, or None."""

    logits: Dense
    correction: Array | None
    routing: Routing


@dataclass(frozen=True)
class Mixture:
    """Experts, of which every token goes through some, and one that it goes through besides, or None.

    shared_gate: `(1, hidden)`: the sigmoid of its output is what the shared one counts for; None: 1.
    """

    router: Router
    experts: list[GatedMlp]
    shared: GatedMlp | None
    shared_gate: Dense | None


@dataclass(frozen=True)
class StackBlock:
    """cosines, sines: `(max_tokens, rotary_dim / 2)` float32; window: positions a query sees, itself too; 0: all."""

    norms: Norms
    qkv: Projection
    o: Projection
    mlp: GatedMlp | PlainMlp | Mixture
    cosines: Array
    sines: Array
    window: int


@dataclass(frozen=True)
class Stack:
    """A model of decoder blocks: attention with rotation, then an MLP or a mixture of gated ones.

    embedding: `(vocabulary, hidden)`; activation: the config's name of the MLP's; a cap of 0: there is none;
    interleaved: the rotation turns neighbours, features 2i and 2i + 1, and not i and i + rotary_dim / 2. layer_norm:
    norms subtract the mean first, and may have biases; else they are RMS norms. parallel: the MLP reads what the
    attention does, and both join the residual together. turned_first: q and k are normed after the rotation.
    """

    blocks: list[StackBlock]
    embedding: Array
    embedding_scale: float
    final_norm: Array
    head: Projection
    vocabulary: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    activation: str
    attention_scale: float
    attention_cap: float
    logit_cap: float
    interleaved: bool
    layer_norm: bool = False
    parallel: bool = False
    turned_first: bool = False
    final_bias: Array | None = None


@dataclass(frozen=True)
class Reading:
    """Tokens `(count,)` int64 of one text, which stand at `position` and on; its past is what was read before that.

    rows: after how many of them, the last, logits are wanted, which may be none; slot: of the text.
    """

    tokens: np.ndarray
    position: int
    rows: int
    slot: int = 0


class StackDecoder(Protocol):
    """A stack ready to read, with its key/value cache, which has slots for as many texts.

    max_tokens: of a text; chunk: tokens that are read at a time; nbytes: of the cache; same_in_any_cut: whether what
    comes after a token has the same bits however its text is cut into calls.
    """

    max_tokens: int
    vocabulary: int
    chunk: int
    slots: int
    nbytes: int
    same_in_any_cut: bool

    def read(self, readings: Sequence[Reading], out: np.ndarray) -> None:
        """Read some tokens of each of several texts, in slots that differ, `chunk` in all at most.

        out: float32 `(rows of all, vocabulary)`, filled with the logits that are asked for, text by text.
        """
        ...

    def copy(self, source: int, target: int, count: int) -> None:
        """Have one slot hold what another does, of its first `count` positions."""
