"""The native decoder: a stack described to it in its own structures, and one call a token or chunk of a prompt."""

import ctypes
import weakref
from math import prod

import torch
from torch import Tensor

from qlinear.backends.cpu import native_decoder as native
from qlinear.backends.cpu.memory import huge_pages
from qlinear.backends.cpu.native import Weight
from qlinear.backends.cpu.weight import CpuWeight
from qlinear.backends.stack import Dense, Matrix, Projection, Stack, StackBlock, Unsupported


class CpuDecoder:
    """`qlinear.backends.stack.StackDecoder`; not for use from two threads at once. Weights are read in place."""

    device = torch.device("cpu")

    def __init__(self, stack: Stack, max_tokens: int, chunk: int):
        """Raises `Unsupported` for a stack beyond the limits of csrc, `TargetError` where memory is not to be had."""
        _check(stack)
        self._library = native.decoder_library()
        self._kept: list = []  # what the description points into
        self._cache = self._make_cache(stack, max_tokens)
        description = self._describe(stack, max_tokens, chunk)
        self._handle = self._library.awq_decoder_create(ctypes.byref(description))
        weakref.finalize(self, self._library.awq_decoder_free, self._handle)
        self.max_tokens, self.vocabulary, self.chunk = max_tokens, stack.vocabulary, chunk
        self.nbytes = self._cache.nbytes

    def read(self, tokens: Tensor, position: int, out: Tensor) -> None:
        self._library.awq_decoder_read(self._handle, tokens.data_ptr(), len(tokens), position, len(out), out.data_ptr())

    def _make_cache(self, stack: Stack, max_tokens: int) -> Tensor:
        """Keys and values: `(layers, 2, elements)` bf16, on pages of its own."""
        elements = self._library.awq_cache_elements(max_tokens, stack.kv_heads, stack.head_dim)
        shape = len(stack.blocks), 2, elements
        cache = huge_pages(2 * prod(shape)).view(torch.bfloat16)[: prod(shape)].view(shape)
        return cache.zero_()  # so that no token has to wait for pages

    def _describe(self, stack: Stack, max_tokens: int, chunk: int) -> native.Model:
        blocks = (native.Block * len(stack.blocks))(
            *(self._block(block, keys_values) for block, keys_values in zip(stack.blocks, self._cache, strict=True))
        )
        self._kept.append(blocks)
        same = ("vocabulary", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "epsilon", "embedding_scale",
                "attention_scale", "attention_cap", "logit_cap")  # fmt: skip
        return native.Model(
            blocks=blocks,
            embedding=self._bf16(stack.embedding, "the embedding"),
            final_norm=self._fp32(stack.final_norm),
            head=self._projection(stack.head),
            layers=len(stack.blocks),
            rotary_dim=2 * stack.blocks[0].cosines.shape[1],
            max_tokens=max_tokens,
            chunk=chunk,
            activation=native.ACTIVATIONS[stack.activation],
            **{name: getattr(stack, name) for name in same},
        )

    def _block(self, block: StackBlock, keys_values: Tensor) -> native.Block:
        norms = block.norms
        return native.Block(
            input_norm=self._fp32(norms.input),
            attention_norm=self._fp32(norms.attention),
            mlp_norm=self._fp32(norms.mlp),
            output_norm=self._fp32(norms.output),
            q_norm=self._fp32(norms.q),
            k_norm=self._fp32(norms.k),
            qkv=self._projection(block.qkv),
            o=self._projection(block.o),
            gate_up=self._projection(block.gate_up),
            down=self._projection(block.down),
            cosines=self._fp32(block.cosines),
            sines=self._fp32(block.sines),
            keys=keys_values[0].data_ptr(),
            values=keys_values[1].data_ptr(),
            window=block.window,
        )

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _fp32(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(tensor.detach().float().contiguous())

    def _bf16(self, tensor: Tensor, what: str) -> int:
        if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu":
            raise Unsupported(
                f"the fused decoder runs bfloat16 on the cpu; {what} is {tensor.dtype} on {tensor.device}"
            )
        return self._keep(tensor.detach().contiguous())

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
        weight = matrix.prepared
        if not isinstance(weight, CpuWeight):
            raise Unsupported("the fused decoder needs the native cpu kernels, which this model does not run on")
        self._kept.append(weight)
        return native.Matrix(weight.native, None)


def _check(stack: Stack) -> None:
    sharing = stack.heads // stack.kv_heads
    if stack.activation not in native.ACTIVATIONS:
        raise Unsupported(f"the fused decoder does not know the activation {stack.activation}")
    if stack.head_dim % 2 or stack.head_dim > native.MAX_HEAD_DIM or sharing > native.MAX_SHARING:
        raise Unsupported(
            f"the fused decoder takes heads of up to {native.MAX_HEAD_DIM} features (an even number), "
            f"{native.MAX_SHARING} query heads to a key head; this model has {stack.head_dim} and {sharing}"
        )
