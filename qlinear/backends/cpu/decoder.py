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
from qlinear.backends.stack import (
    Dense,
    GatedMlp,
    Matrix,
    Mixture,
    Norms,
    Projection,
    Stack,
    StackBlock,
    Unsupported,
)


class CpuDecoder:
    """`qlinear.backends.stack.StackDecoder`; not for use from two threads at once. Weights are read in place."""

    def __init__(self, stack: Stack, max_tokens: int, chunk: int):
        """Raises `Unsupported` for a stack beyond the limits of csrc, `TargetError` where memory is not to be had."""
        _check(stack)
        self._library = native.decoder_library()
        self._kept: list = []  # what the description points into
        self._head_dim = stack.head_dim
        self._cache = self._make_cache(stack, max_tokens)
        description = self._describe(stack, max_tokens, chunk)
        self._handle = self._library.awq_decoder_create(ctypes.byref(description))
        weakref.finalize(self, self._library.awq_decoder_free, self._handle)
        self.max_tokens, self.vocabulary, self.chunk = max_tokens, stack.vocabulary, chunk
        self.nbytes = self._cache.nbytes

    def read(self, tokens: Tensor, position: int, out: Tensor) -> None:
        """Raises `ValueError` for what there is no room for: native code looks at nothing."""
        self._check_call(tokens, position, out)
        self._library.awq_decoder_read(self._handle, tokens.data_ptr(), len(tokens), position, len(out), out.data_ptr())

    def _check_call(self, tokens: Tensor, position: int, out: Tensor) -> None:
        count, rows = len(tokens), len(out)
        if not 0 < count <= self.chunk or position < 0 or position + count > self.max_tokens:
            room = f"{self.chunk} at a time and {self.max_tokens} in all"
            raise ValueError(f"{count} tokens at position {position}: there is room for {room}")
        if rows > count or out.shape[1:] != (self.vocabulary,):
            raise ValueError(f"logits {tuple(out.shape)} of {count} tokens and a vocabulary of {self.vocabulary}")
        plain = tokens.dim() == 1 and all(t.is_contiguous() and t.device.type == "cpu" for t in (tokens, out))
        if not plain or (tokens.dtype, out.dtype) != (torch.int64, torch.float32):
            raise ValueError("tokens have to be int64, logits float32, both in one piece on the cpu")
        if tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise ValueError(f"token ids have to be in [0, {self.vocabulary})")

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
        same = ("vocabulary", "hidden", "heads", "kv_heads", "head_dim", "epsilon", "embedding_scale",
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
            interleaved=stack.interleaved,
            **{name: getattr(stack, name) for name in same},
        )

    def _block(self, block: StackBlock, keys_values: Tensor) -> native.Block:
        norms = block.norms
        return native.Block(
            input_norm=self._fp32(norms.input),
            attention_norm=self._fp32(norms.attention),
            mlp_norm=self._fp32(norms.mlp),
            output_norm=self._fp32(norms.output),
            qkv=self._projection(block.qkv),
            o=self._projection(block.o),
            cosines=self._fp32(block.cosines),
            sines=self._fp32(block.sines),
            keys=keys_values[0].data_ptr(),
            values=keys_values[1].data_ptr(),
            window=block.window,
            **self._head_norms(norms),
            **self._mlp_or_mixture(block.mlp),
        )

    def _head_norms(self, norms: Norms) -> dict[str, int | None]:
        of_all = norms.q is not None and norms.q.numel() > self._head_dim
        prefix = "all_" if of_all else ""
        return {f"{prefix}q_norm": self._fp32(norms.q), f"{prefix}k_norm": self._fp32(norms.k)}

    def _mlp_or_mixture(self, mlp: GatedMlp | Mixture) -> dict[str, ctypes.Structure]:
        if isinstance(mlp, GatedMlp):
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

    def _mlp(self, mlp: GatedMlp) -> native.Mlp:
        return native.Mlp(self._projection(mlp.gate_up), self._projection(mlp.down))

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


def _in_bf16(router: Dense) -> Projection:
    """A float32 weight, as some models keep their routers, as the sum of two in bfloat16."""
    if router.weight.dtype != torch.float32:
        return [router]
    first = router.weight.bfloat16()
    return [Dense(first, None), Dense((router.weight - first.float()).bfloat16(), None)]


def _check(stack: Stack) -> None:
    sharing = stack.heads // stack.kv_heads
    if stack.activation not in native.ACTIVATIONS:
        raise Unsupported(f"the fused decoder does not know the activation {stack.activation}")
    if len(stack.embedding) != stack.vocabulary:
        raise Unsupported(
            f"the fused decoder takes as many embeddings as outputs; this model has {len(stack.embedding)} and "
            f"{stack.vocabulary}"
        )
    if stack.head_dim % 2 or stack.head_dim > native.MAX_HEAD_DIM or sharing > native.MAX_SHARING:
        raise Unsupported(
            f"the fused decoder takes heads of up to {native.MAX_HEAD_DIM} features (an even number), "
            f"{native.MAX_SHARING} query heads to a key head; this model has {stack.head_dim} and {sharing}"
        )
    for block in stack.blocks:
        if isinstance(block.mlp, Mixture):
            _check_mixture(block.mlp)


def _check_mixture(mixture: Mixture) -> None:
    routing, experts = mixture.router.routing, len(mixture.experts)
    comparable = routing.top_groups * (experts // routing.groups)
    if experts % routing.groups or routing.groups > native.MAX_EXPERT_GROUPS:
        raise Unsupported(
            f"the fused decoder takes experts in up to {native.MAX_EXPERT_GROUPS} groups of one size; this model has "
            f"{experts} in {routing.groups}"
        )
    if not 0 < routing.top_k <= comparable or len(mixture.router.logits.weight) != experts:
        raise Unsupported(
            f"the fused decoder takes 1 expert a token up to all; this model chooses {routing.top_k} of {comparable}, "
            f"and scores {len(mixture.router.logits.weight)} of {experts}"
        )
