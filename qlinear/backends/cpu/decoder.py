"""The native decoder: a stack described to it in its own structures, and one call a token or chunk of a prompt."""

import ctypes
import weakref
from collections.abc import Sequence
from math import prod

import numpy as np

from qlinear.backends.cpu import native_decoder as native
from qlinear.backends.cpu.arrays import as_float32, host_array, to_bfloat16
from qlinear.backends.cpu.bytes import in_bytes
from qlinear.backends.cpu.limits import check
from qlinear.backends.cpu.memory import huge_pages
from qlinear.backends.cpu.native import Weight
from qlinear.backends.stack import (
    Array,
    Dense,
    GatedMlp,
    Matrix,
    Mixture,
    Norms,
    PlainMlp,
    Projection,
    Reading,
    Stack,
    StackBlock,
    Unsupported,
)
from qlinear.backends.widths import Widths
from qlinear.errors import TargetError


class CpuDecoder:
    """`qlinear.backends.stack.StackDecoder`; not for use from two threads at once. Weights are read in place."""

    same_in_any_cut = True  # csrc/common/decoder.h

    def __init__(self, stack: Stack, max_tokens: int, chunk: int, slots: int = 1, widths: Widths = Widths()):
        """widths: of the cache, and of a head that is not quantized.

        Raises `Unsupported` for a stack beyond the limits of csrc, `TargetError` where memory is not to be had.
        """
        check(stack)
        self._library = native.decoder_library()
        self._kept: list = []  # what the description points into
        self._head_dim, self._widths = stack.head_dim, widths
        self.max_tokens, self.vocabulary, self.chunk, self.slots = max_tokens, stack.vocabulary, chunk, slots
        self._cache = self._make_cache(stack)
        description = self._describe(stack)
        self._handle = self._library.awq_decoder_create(ctypes.byref(description))
        if self._handle is None:
            raise MemoryError
        weakref.finalize(self, self._library.awq_decoder_free, self._handle)
        self.nbytes = self._cache.nbytes

    def read(self, readings: Sequence[Reading], out: np.ndarray) -> None:
        """Raises `ValueError` for what there is no room for: native code looks at nothing."""
        self._check_call(readings, out)
        described = (native.Reading * len(readings))(
            *((one.tokens.ctypes.data, one.slot, one.position, len(one.tokens), one.rows) for one in readings)
        )
        self._library.awq_decoder_read(self._handle, described, len(readings), out.ctypes.data)

    def copy(self, source: int, target: int, count: int) -> None:
        """Raises `ValueError` for what is no slot, or more than one holds."""
        if not {source, target} <= set(range(self.slots)) or not 0 <= count <= self.max_tokens:
            raise ValueError(f"{count} positions from slot {source} to {target}: there are {self.slots} slots")
        self._library.awq_decoder_copy(self._handle, source, target, count)

    def _check_call(self, readings: Sequence[Reading], out: np.ndarray) -> None:
        count, rows = sum(len(one.tokens) for one in readings), sum(one.rows for one in readings)
        if not 0 < count <= self.chunk or len({one.slot for one in readings}) < len(readings):
            raise ValueError(f"{count} tokens of {len(readings)} texts: {self.chunk} at a time, in slots that differ")
        for one in readings:
            self._check_reading(one)
        if out.shape != (rows, self.vocabulary) or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"logits {out.shape}: float32 ({rows}, {self.vocabulary}) in one piece are asked for")

    def _check_reading(self, one: Reading) -> None:
        tokens, end = one.tokens, one.position + len(one.tokens)
        if tokens.ndim != 1 or tokens.dtype != np.int64 or not tokens.flags.c_contiguous:
            raise ValueError("tokens have to be int64, in one piece")
        if not 0 <= one.position < end <= self.max_tokens or not 0 <= one.slot < self.slots:
            room = f"{self.slots} slots of {self.max_tokens} positions"
            raise ValueError(f"{len(tokens)} tokens at position {one.position} of slot {one.slot}: there are {room}")
        if not 0 <= one.rows <= len(tokens):
            raise ValueError(f"{one.rows} rows of {len(tokens)} tokens are asked for")
        if tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise ValueError(f"token ids have to be in [0, {self.vocabulary})")

    def _make_cache(self, stack: Stack) -> np.ndarray:
        """Keys and values: `(layers, 2, slots, kv_heads, bytes)`, on pages of its own, which come as they are written
        to.
        """
        bytes_of = self._library.awq_cache_bytes
        of_slot = bytes_of(self.max_tokens, stack.kv_heads, stack.head_dim, self._widths.kv)
        shape = len(stack.blocks), 2, self.slots, stack.kv_heads, of_slot // stack.kv_heads
        return huge_pages(prod(shape))[: prod(shape)].reshape(shape)

    def _describe(self, stack: Stack) -> native.Model:
        blocks = (native.Block * len(stack.blocks))(
            *(self._block(block, keys_values) for block, keys_values in zip(stack.blocks, self._cache, strict=True))
        )
        self._kept.append(blocks)
        same = ("vocabulary", "hidden", "heads", "kv_heads", "head_dim", "epsilon", "embedding_scale",
                "attention_scale", "attention_cap", "logit_cap", "interleaved", "layer_norm", "parallel",
                "turned_first")  # fmt: skip
        return native.Model(
            blocks=blocks,
            embedding=self._bf16(stack.embedding, "the embedding"),
            final_norm=self._fp32(stack.final_norm),
            final_bias=self._fp32(stack.final_bias),
            head=self._head(stack.head),
            layers=len(stack.blocks),
            rotary_dim=2 * stack.blocks[0].cosines.shape[1],
            max_tokens=self.max_tokens,
            slots=self.slots,
            chunk=self.chunk,
            activation=native.PLAIN_ACTIVATIONS[stack.activation],
            kv_bits=self._widths.kv,
            **{name: getattr(stack, name) for name in same},
        )

    def _block(self, block: StackBlock, keys_values: np.ndarray) -> native.Block:
        norms = block.norms
        return native.Block(
            input_norm=self._fp32(norms.input),
            attention_norm=self._fp32(norms.attention),
            mlp_norm=self._fp32(norms.mlp),
            output_norm=self._fp32(norms.output),
            input_bias=self._fp32(norms.input_bias),
            mlp_bias=self._fp32(norms.mlp_bias),
            qkv=self._projection(block.qkv),
            o=self._projection(block.o),
            cosines=self._fp32(block.cosines),
            sines=self._fp32(block.sines),
            keys=keys_values[0].ctypes.data,
            values=keys_values[1].ctypes.data,
            window=block.window,
            **self._head_norms(norms),
            **self._mlp_or_mixture(block.mlp),
        )

    def _head_norms(self, norms: Norms) -> dict[str, int | None]:
        of_all = norms.q is not None and len(norms.q) > self._head_dim
        prefix = "all_" if of_all else ""
        return {f"{prefix}q_norm": self._fp32(norms.q), f"{prefix}k_norm": self._fp32(norms.k)}

    def _mlp_or_mixture(self, mlp: GatedMlp | PlainMlp | Mixture) -> dict[str, ctypes.Structure]:
        if not isinstance(mlp, Mixture):
            return {"mlp": self._mlp(mlp)}
        router, routing = mlp.router, mlp.router.routing
        experts = (native.Mlp * len(mlp.experts))(*map(self._mlp, mlp.experts))
        described = native.Mixture(
            native.Router(
                self._projection(_in_bf16(router.logits)),
                self._fp32(router.correction),
                routing.top_k,
                routing.groups,
                routing.top_groups,
                routing.scaling,
                routing.least_sum,
                routing.scoring.value,
                routing.normalized,
            ),
            experts,
            None if mlp.shared is None else ctypes.pointer(self._mlp(mlp.shared)),
            native.Matrix() if mlp.shared_gate is None else self._matrix(mlp.shared_gate),
        )
        self._kept += [experts, described]
        return {"mixture": ctypes.pointer(described)}

    def _mlp(self, mlp: GatedMlp | PlainMlp) -> native.Mlp:
        if isinstance(mlp, GatedMlp):
            return native.Mlp(self._projection(mlp.gate_up), self._projection(mlp.down))
        curve = self._fp32(_curve(mlp.curve)) if mlp.curve else None
        return native.Mlp(self._projection(mlp.up), self._projection(mlp.down), True, curve)

    def _keep(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return array.ctypes.data

    def _fp32(self, array: Array | None) -> int | None:
        return None if array is None else self._keep(np.ascontiguousarray(as_float32(array)))

    def _bf16(self, array: Array, what: str) -> int:
        return self._keep(np.ascontiguousarray(self._host_bf16(array, what)))

    def _host_bf16(self, array: Array, what: str) -> np.ndarray:
        array = host_array(array)
        if array.dtype != np.uint16:
            raise Unsupported(f"the fused decoder runs bfloat16; {what} is {array.dtype}")
        return array

    def _head(self, matrices: Projection) -> native.Projection:
        if self._widths.head == 16:
            return self._projection(matrices)
        if not all(isinstance(matrix, Dense) for matrix in matrices):
            raise TargetError(f"`head_bits={self._widths.head}`: the output head is quantized already; leave it out")
        described = [self._in_bytes(matrix) for matrix in matrices]
        return native.Projection((native.Matrix * native.PARTS)(*described), len(described))

    def _in_bytes(self, matrix: Dense) -> native.Matrix:
        n, k = matrix.weight.shape
        made = in_bytes(np.ascontiguousarray(self._host_bf16(matrix.weight, "the output head")))
        self._kept.append(made)
        weight = Weight(None, self._fp32(matrix.bias), n, k, 0, 0)
        return native.Matrix(weight, None, self._keep(made.codes), self._keep(made.scales))

    def _projection(self, matrices: Projection) -> native.Projection:
        described = [self._matrix(matrix) for matrix in matrices]
        if len({(bool(matrix.dense), matrix.weight.group_size) for matrix in described}) > 1:
            raise Unsupported("the fused decoder wants layers that read one input to have one group size")
        return native.Projection((native.Matrix * native.PARTS)(*described), len(described))

    def _matrix(self, matrix: Matrix) -> native.Matrix:
        if isinstance(matrix, Dense):
            n, k = matrix.weight.shape
            dense = self._bf16(matrix.weight, "a linear layer")
            return native.Matrix(Weight(None, self._fp32(matrix.bias), n, k, 0, 0), dense)
        self._kept.append(matrix.prepared)
        return native.Matrix(matrix.prepared.native, None)


def _curve(given: Sequence[Array]) -> np.ndarray:
    """The numbers of xIELU as decoder.h has them: transformers' `activations.py` keeps the alphas before a softplus."""
    above, below, beta, epsilon = (as_float32(value).astype(np.float64).item() for value in given)
    return np.array([np.logaddexp(0, above), beta + np.logaddexp(0, below), beta, epsilon], np.float32)


def _in_bf16(router: Dense) -> Projection:
    """A float32 weight, as some models keep their routers, as the sum of two in bfloat16."""
    weight = host_array(router.weight)
    if weight.dtype != np.float32:
        return [router]
    first = to_bfloat16(weight)
    return [Dense(first, None), Dense(to_bfloat16(weight - as_float32(first)), None)]
