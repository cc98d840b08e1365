"""A random Llama-2-7B, whole: the fused decoder on packed weights and on bfloat16."""

import time

import numpy as np
import torch

from benchmarks.cuda.linears import GROUP, SHAPES, random_packed
from benchmarks.cuda.report import ModelRun
from benchmarks.cuda.timing import seconds_each
from qlinear.backends.cuda.backend import CudaBackend
from qlinear.backends.cuda.decoder import CudaDecoder
from qlinear.backends.cuda.step import Launch
from qlinear.backends.cuda.weight import CudaWeight
from qlinear.backends.stack import Dense, GatedMlp, Matrix, Norms, Packed, Stack, StackBlock

LAYERS, HIDDEN, HEADS, HEAD_DIM, VOCABULARY = 32, 4096, 32, 128, 32000
PROMPT, WRITTEN, CHUNK = 128, 128, 264


class Weights:
    """Layers of Llama-2-7B's shapes: in random bfloat16, or packed copies of one random weight a shape."""

    def __init__(self, backend: CudaBackend, bits: int):
        self.bits, self.nbytes = bits, 0
        self._first: dict[str, CudaWeight] = {}
        if bits < 16:
            for name, (n, k) in SHAPES.items():
                self._first[name] = backend.prepare(random_packed(n, k, bits), None)

    def one(self, name: str) -> list[Matrix]:
        if self.bits == 16:
            n, k = SHAPES[name]
            dense = torch.randn(n, k, dtype=torch.bfloat16, device="cuda") * k**-0.5
            self.nbytes += dense.nbytes
            return [Dense(dense, None)]
        first = self._first[name]
        self.nbytes += first.nbytes
        return [Packed(CudaWeight(first.packed.clone(), None, first.shape, self.bits, GROUP))]


def stack_of(weights: Weights, max_tokens: int) -> Stack:
    ones = torch.ones(HIDDEN, device="cuda")
    norms = Norms(ones, None, ones, None, None, None)
    frequencies = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM)
    angles = torch.arange(max_tokens, device="cuda").unsqueeze(1) * frequencies

    def block() -> StackBlock:
        qkv, o, gate_up, down = (weights.one(name) for name in ("qkv", "o", "gate_up", "down"))
        return StackBlock(norms, qkv, o, GatedMlp(gate_up, down), angles.cos(), angles.sin(), 0)

    return Stack(
        blocks=[block() for _ in range(LAYERS)],
        embedding=torch.randn(VOCABULARY, HIDDEN, device="cuda").bfloat16(), embedding_scale=1.0,
        final_norm=ones, head=weights.one("head"), vocabulary=VOCABULARY, hidden=HIDDEN,
        heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, epsilon=1e-5, activation="silu",
        attention_scale=HEAD_DIM**-0.5, attention_cap=0.0, logit_cap=0.0, interleaved=False,
    )  # fmt: skip


def write(decoder: CudaDecoder, tokens: int) -> tuple[list[int], float, float]:
    """Tokens after a prompt; the seconds of the prompt, and of what came after the first token."""
    out = np.empty((1, decoder.vocabulary), np.float32)
    begin = time.perf_counter()
    decoder.read(np.arange(PROMPT), 0, out)
    written = [int(out.argmax())]
    first = time.perf_counter()
    for position in range(PROMPT, PROMPT + tokens):
        decoder.read(np.array(written[-1:]), position, out)
        written.append(int(out.argmax()))
    return written, first - begin, time.perf_counter() - first


def parts(backend: CudaBackend, decoder: CudaDecoder) -> dict[str, float]:
    """Seconds of a token by kernel, each kind run on its own: their sum is about the token's."""
    kinds: dict[str, list[Launch]] = {}
    for one in decoder.step.launches:
        rows = f" {one.job.weight[0].n}x{one.job.weight[0].k}" if one.kernel.startswith("awq_row") else ""
        kinds.setdefault(one.kernel + rows, []).append(one)
    launch = backend.launcher.launch
    return {
        kind: seconds_each([lambda one=one: launch(one.kernel, one.job, one.grid) for one in ones]) * len(ones)
        for kind, ones in kinds.items()
    }


def run(backend: CudaBackend, bits: int) -> ModelRun:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    weights = Weights(backend, bits)
    stack = stack_of(weights, PROMPT + WRITTEN)
    decoder = backend.decoder(stack, PROMPT + WRITTEN, CHUNK)
    write(decoder, WRITTEN)  # the graph is made, cuBLAS has chosen
    once, prefill, seconds = write(decoder, WRITTEN)
    again, *_ = write(decoder, WRITTEN)
    return ModelRun(
        name="bf16" if bits == 16 else f"w{bits} g{GROUP}",
        step=seconds_each([decoder.step.run] * 4),
        tokens_a_second=WRITTEN / seconds,
        prefill_seconds=prefill,
        weight_bytes=weights.nbytes,
        peak_bytes=torch.cuda.max_memory_allocated(),
        same_again=once == again,
        parts=parts(backend, decoder),
    )
