"""A prompt through a stack, in torch on any device: what it leaves in the cache is what the kernels read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qlinear.backends.base import Backend
from qlinear.backends.stack import Dense, Matrix, Projection, Stack, StackBlock


class Prefill:
    """Activations between operations are bfloat16, the rest is float32, as in the kernels.

    cache: `(blocks, 2, kv_heads, max_tokens, head_dim)` bfloat16.
    """

    def __init__(self, backend: Backend, stack: Stack, cache: Tensor):
        self._backend, self._stack, self._cache = backend, stack, cache

    @torch.no_grad()
    def read(self, tokens: Tensor, position: int, out: Tensor) -> None:
        """tokens: `(count,)` on the device; out: logits after the last of them, as many as it has rows."""
        stack = self._stack
        residual = stack.embedding[tokens].float() * stack.embedding_scale
        delta, after = None, None
        for block, keys_values in zip(stack.blocks, self._cache, strict=True):
            residual = self._joined(residual, delta, after)
            given = self._norm(residual, block.norms.input)
            attended = self._attend(block, keys_values, self._project(block.qkv, given), position)
            residual = self._joined(residual, self._project(block.o, attended), block.norms.attention)
            gate, up = self._project(block.mlp.gate_up, self._norm(residual, block.norms.mlp)).float().chunk(2, dim=-1)
            delta = self._project(block.mlp.down, (self._activated(gate) * up).bfloat16())
            after = block.norms.output
        if len(out):
            last = slice(len(tokens) - len(out), None)
            residual = self._joined(residual[last], delta[last], after)
            logits = self._project(stack.head, self._norm(residual, stack.final_norm)).float()
            out.copy_(stack.logit_cap * torch.tanh(logits / stack.logit_cap) if stack.logit_cap else logits)

    def _joined(self, residual: Tensor, delta: Tensor | None, after: Tensor | None) -> Tensor:
        if delta is None:
            return residual
        return residual + (delta.float() if after is None else self._normed(delta.float(), after))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._normed(x, weight).bfloat16()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._stack.epsilon) * weight.to(x.device)

    def _activated(self, gate: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") if self._stack.activation.startswith("gelu") else F.silu(gate)

    def _project(self, projection: Projection, x: Tensor) -> Tensor:
        return torch.cat([self._multiply(matrix, x) for matrix in projection], dim=-1)

    def _multiply(self, matrix: Matrix, x: Tensor) -> Tensor:
        if isinstance(matrix, Dense):
            return F.linear(x, matrix.weight, matrix.bias)
        return self._backend.matmul(x, matrix.prepared)

    def _attend(self, block: StackBlock, keys_values: Tensor, qkv: Tensor, position: int) -> Tensor:
        stack, count, end = self._stack, len(qkv), position + len(qkv)
        sizes = [stack.heads * stack.head_dim, *[stack.kv_heads * stack.head_dim] * 2]
        q, k, v = (part.unflatten(-1, (-1, stack.head_dim)) for part in qkv.split(sizes, dim=-1))
        keys_values[0, :, position:end] = self._rope(block, k, block.norms.k, position).transpose(0, 1)
        keys_values[1, :, position:end] = v.transpose(0, 1)
        keys, values = keys_values[:, :, :end].float()
        # (kv_heads, group * count, head_dim): a key's query heads one after the other
        q = self._rope(block, q, block.norms.q, position).float()
        q = q.unflatten(1, (stack.kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        scores = q @ keys.transpose(1, 2) * stack.attention_scale
        if stack.attention_cap:
            scores = stack.attention_cap * torch.tanh(scores / stack.attention_cap)
        at = torch.arange(end, device=qkv.device)
        distance = at[position:].unsqueeze(1) - at
        unseen = (distance < 0) | (distance >= block.window if block.window else False)
        scores = scores.unflatten(1, (-1, count)).masked_fill(unseen, float("-inf"))
        out = scores.softmax(-1).flatten(1, 2) @ values
        return out.unflatten(1, (-1, count)).permute(2, 0, 1, 3).flatten(1).bfloat16()

    def _rope(self, block: StackBlock, x: Tensor, norm: Tensor | None, position: int) -> Tensor:
        """x: `(count, heads, head_dim)`"""
        x, half = x.float(), block.cosines.shape[1]
        if norm is not None:
            x = self._normed(x, norm)
        of_tokens = slice(position, position + len(x))
        cosine = block.cosines[of_tokens].to(x.device).unsqueeze(1)
        sine = block.sines[of_tokens].to(x.device).unsqueeze(1)
        a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], dim=-1).bfloat16()
