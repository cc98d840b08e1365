"""One token through a stack, as one list of launches."""

import ctypes
from ctypes import Structure
from dataclasses import dataclass

import torch
from torch import Tensor

from qlinear.backends.cuda.launch import WARP, Grid, Launcher, stream_grid, suffix
from qlinear.backends.cuda.structs import (
    ATTENTION_THREADS,
    HEADS,
    INPUT_NORM,
    INPUT_ROW,
    OUTPUT_BF16,
    OUTPUT_GELU,
    OUTPUT_LOGITS,
    OUTPUT_SILU,
    SCRATCH,
    TILE,
    AttentionJob,
    DenseGateUpJob,
    DenseJob,
    EmbedJob,
    GateUpJob,
    Input,
    Output,
    RowJob,
)
from qlinear.backends.cuda.weight import CudaWeight
from qlinear.backends.stack import Dense, Matrix, Projection, Stack, StackBlock, Unsupported

ACTIVATIONS = {"silu": OUTPUT_SILU, "swish": OUTPUT_SILU, "gelu_pytorch_tanh": OUTPUT_GELU}
MOST_SPLITS, SMALLEST_SPLIT = 32, 128  # of a head's past
DENSE_WARPS, DENSE_BLOCKS = 8, 2  # of a block; on a multiprocessor


@dataclass(frozen=True)
class Launch:
    kernel: str
    job: Structure
    grid: Grid


class Step:
    """One token through the stack: its launches, in order.

    given: the token and its position, written by whoever runs it; logits: `(1, vocabulary)` float32; launches: of the
    kernels that make these of those.
    """

    def __init__(self, launcher: Launcher, stack: Stack, cache: Tensor):
        self._launcher, self._stack = launcher, stack
        self._kept: list[Tensor] = []  # what the jobs point into
        self.launches: list[Launch] = []
        self._blocks = launcher.processors * DENSE_BLOCKS
        self._host = torch.zeros(2, dtype=torch.int64, pin_memory=launcher.device.type == "cuda")
        self.given = (ctypes.c_int64 * 2).from_address(self._host.data_ptr())
        self._state = self._keep(torch.zeros(2, dtype=torch.int64, device=launcher.device))
        self.logits = self._empty(1, stack.vocabulary, dtype=torch.float32)
        attended = stack.heads * stack.head_dim
        self._qkv = self._empty(attended + 2 * stack.kv_heads * stack.head_dim)
        widest = max(intermediate(block.mlp.gate_up) for block in stack.blocks)
        self._attended, self._gated = self._empty(attended), self._empty(widest)
        self._delta = self._empty(stack.hidden)
        self._residual, self._next = (self._empty(stack.hidden, dtype=torch.float32) for _ in range(2))
        self._split = _split(cache.shape[3])
        splits = -(-cache.shape[3] // self._split)
        self._split_out = self._empty(stack.heads, splits, stack.head_dim, dtype=torch.float32)
        self._maxima, self._sums = (self._empty(stack.heads, splits, dtype=torch.float32) for _ in range(2))
        self._tickets = self._keep(torch.zeros(stack.kv_heads, dtype=torch.int32, device=launcher.device))
        self._build(cache)

    def run(self) -> None:
        self._state.copy_(self._host, non_blocking=True)
        for one in self.launches:
            self._launcher.launch(one.kernel, one.job, one.grid)

    def _build(self, cache: Tensor) -> None:
        stack = self._stack
        embedding = self._bf16(stack.embedding, "the embedding")
        job = EmbedJob(
            embedding, self._state.data_ptr(), self._residual.data_ptr(), stack.embedding_scale, stack.hidden
        )
        self._add("awq_embed", job, Grid(-(-stack.hidden // 256), 256, early=True))
        delta, after = None, None  # what the last block's MLP adds, and the norm it goes through
        for block, keys_values in zip(stack.blocks, cache, strict=True):
            self._project(block.qkv, self._normed(delta, after, block.norms.input), self._qkv, OUTPUT_BF16)
            self._attend(block, keys_values)
            self._project(block.o, self._row(self._attended), self._delta, OUTPUT_BF16)
            given = self._normed(self._delta, block.norms.attention, block.norms.mlp)
            self._gate_up(block.mlp.gate_up, given)
            self._project(block.mlp.down, self._row(self._gated), self._delta, OUTPUT_BF16)
            delta, after = self._delta, block.norms.output
        self._project(stack.head, self._normed(delta, after, stack.final_norm), self.logits, OUTPUT_LOGITS)

    def _row(self, row: Tensor) -> Input:
        return Input(row=row.data_ptr(), kind=INPUT_ROW)

    def _normed(self, delta: Tensor | None, after: Tensor | None, norm: Tensor) -> Input:
        """The stream takes in `delta` on its way from one buffer to the other; nothing to take in, it stays."""
        given = Input(
            residual=self._residual.data_ptr(), norm=self._fp32(norm), epsilon=self._stack.epsilon, kind=INPUT_NORM
        )
        if delta is not None:
            given.delta, given.after, given.residual_out = delta.data_ptr(), self._fp32(after), self._next.data_ptr()
            self._residual, self._next = self._next, self._residual
        return given

    def _project(self, projection: Projection, given: Input, out: Tensor, kind: int) -> None:
        """Outputs side by side."""
        address = out.data_ptr()
        for matrix in projection:
            output = Output(address, self._stack.logit_cap if kind == OUTPUT_LOGITS else 0.0, kind)
            address += self._multiply(matrix, given, output) * out.element_size()
            given = _without_residual(given)

    def _multiply(self, matrix: Matrix, given: Input, output: Output) -> int:
        """How many outputs there are."""
        if isinstance(matrix, Dense):
            n, k = matrix.weight.shape
            job = DenseJob(
                (self._bf16(matrix.weight, "a linear layer"),), (self._fp32(matrix.bias),), n, k, given, output
            )
            self._add("awq_dense_row", job, self._dense_grid(n, k))
            return n
        weight = self._packed(matrix)
        n = weight.shape[0]
        grid = stream_grid(self._launcher, weight, n, 1, 1)
        self._add(f"awq_row_{suffix(weight)}", RowJob((weight.native,), given, output), grid)
        return n

    def _gate_up(self, projection: Projection, given: Input) -> None:
        n, output = intermediate(projection), Output(self._gated.data_ptr(), 0.0, ACTIVATIONS[self._stack.activation])
        if all(isinstance(matrix, Dense) for matrix in projection):
            weights = [row for matrix in projection for row in matrix.weight.detach().split(n)]
            biases = [[None] * (len(m.weight) // n) if m.bias is None else m.bias.split(n) for m in projection]
            job = DenseGateUpJob(
                tuple(self._bf16(weight, "a linear layer") for weight in weights),
                tuple(self._fp32(bias) for of_one in biases for bias in of_one),
                n, weights[0].shape[1], given, output,
            )  # fmt: skip
            self._add("awq_dense_gate_up", job, self._dense_grid(n, weights[0].shape[1]))
            return
        packed = [self._packed(matrix) for matrix in projection]
        halves = [weight.rows(first, n) for weight in packed for first in range(0, weight.shape[0], n)]
        if n % TILE or len({(weight.bits, weight.group_size) for weight in packed}) > 1:
            raise Unsupported(
                f"the fused decoder on cuda takes a gate and an up projection of a multiple of {TILE} rows, alike in "
                f"bits and groups; this model's have {n}"
            )
        grid = stream_grid(self._launcher, packed[0], n, 2, 1)
        self._add(f"awq_gate_up_{suffix(packed[0])}", GateUpJob(tuple(halves), given, output), grid)

    def _attend(self, block: StackBlock, keys_values: Tensor) -> None:
        stack, norms, (_, max_tokens, _) = self._stack, block.norms, keys_values[0].shape
        group, splits = stack.heads // stack.kv_heads, self._maxima.shape[1]
        job = AttentionJob(
            qkv=self._qkv.data_ptr(), q_norm=self._fp32(norms.q), k_norm=self._fp32(norms.k),
            cosines=self._fp32(block.cosines), sines=self._fp32(block.sines),
            keys=keys_values[0].data_ptr(), values=keys_values[1].data_ptr(), state=self._state.data_ptr(),
            split_out=self._split_out.data_ptr(), maxima=self._maxima.data_ptr(), sums=self._sums.data_ptr(),
            tickets=self._tickets.data_ptr(), out=self._attended.data_ptr(),
            heads=stack.heads, kv_heads=stack.kv_heads, head_dim=stack.head_dim,
            rotary_dim=2 * block.cosines.shape[1], max_tokens=max_tokens, window=block.window,
            split=self._split, splits=splits,
            scale=stack.attention_scale, cap=stack.attention_cap, epsilon=stack.epsilon,
        )  # fmt: skip
        shared = 4 * (group * (stack.head_dim + self._split) + -(-group // 4) * 4 + ATTENTION_THREADS * 8 * HEADS)
        self._add("awq_attend", job, Grid(stack.kv_heads * splits, ATTENTION_THREADS, shared, early=True))

    def _dense_grid(self, n: int, k: int) -> Grid:
        blocks = min(-(-n // DENSE_WARPS), self._blocks)
        return Grid(blocks, DENSE_WARPS * WARP, 2 * k + 4 * DENSE_WARPS * SCRATCH, early=True)

    def _add(self, kernel: str, job: Structure, grid: Grid) -> None:
        self.launches.append(Launch(kernel, job, grid))

    def _packed(self, matrix: Matrix) -> CudaWeight:
        if isinstance(matrix, Dense) or not isinstance(matrix.prepared, CudaWeight):
            raise Unsupported("the fused decoder on cuda wants layers that read one input to be all packed or all not")
        self._kept.append(matrix.prepared.packed)
        return matrix.prepared

    def _empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return self._keep(torch.empty(shape, dtype=dtype, device=self._launcher.device))

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _fp32(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        return self._keep(tensor.detach().to(self._launcher.device, torch.float32).contiguous()).data_ptr()

    def _bf16(self, tensor: Tensor, what: str) -> int:
        device = self._launcher.device
        if tensor.dtype != torch.bfloat16 or tensor.device.type != device.type:
            raise Unsupported(
                f"the fused decoder runs bfloat16 on {device.type}; {what} is {tensor.dtype} on {tensor.device}"
            )
        return self._keep(tensor.detach().contiguous()).data_ptr()


def intermediate(gate_up: Projection) -> int:
    """Features between gate and up, and down."""
    return sum(m.weight.shape[0] if isinstance(m, Dense) else m.prepared.shape[0] for m in gate_up) // 2


def _without_residual(given: Input) -> Input:
    """The same input for a second reader: only the first writes the stream."""
    again = Input.from_buffer_copy(given)
    again.residual_out = None
    return again


def _split(max_tokens: int) -> int:
    """Positions of a split: as few as there may be for `MOST_SPLITS` of them, in steps of `SMALLEST_SPLIT`."""
    return -(-max_tokens // (MOST_SPLITS * SMALLEST_SPLIT)) * SMALLEST_SPLIT
