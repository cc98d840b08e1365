"""A quantized checkpoint on our engine, for the contestant: the whole stack at once, or the model's own modules."""

import time

import numpy as np

import run_awq
from benchmarks.cpu.contestant import Facts, Spec, Weights
from benchmarks.cpu.report import Engine, ModelSize
from benchmarks.machine import resident_bytes
from engine.at_hand import StackRunner
from engine.decoder import read_last
from engine.fused import FusedDecoder
from engine.model import Model
from engine.stack import describe
from qlinear.backends.cpu import native
from qlinear.backends.cpu.native import address
from qlinear.backends.stack import Dense, GatedMlp, Mixture, Projection, Stack
from qlinear.process import trim_heap
from qlinear.progress import Note


class OurReader:
    """`benchmarks.cpu.contestant.Reader`."""

    def __init__(self, spec: Spec):
        native.set_threads(spec.threads)
        fused, notes = spec.engine is not Engine.MODULES, []
        if not fused:
            _import_modules()
        precision = "w4aint8" if spec.engine is Engine.INT8 else "w4abf16"
        before, start = resident_bytes(), time.perf_counter()
        how = dict(precision=precision, kv_bits=spec.kv_bits, flash_attention=fused)
        model = run_awq.load(spec.path, **how, progress=notes.append)
        load_s = time.perf_counter() - start
        self.facts = Facts(load_s, before, weights_of(_stack(model)))
        trim_heap()  # what loading left behind is not the decoder's
        self._decoder = _decoder(model, spec, notes)
        self._text, self._length = np.zeros(spec.context, np.int64), 0

    def begin(self, tokens: tuple[int, ...]) -> None:
        self._length = len(tokens)
        self._text[: self._length] = tokens
        read_last(self._decoder, self._text[: self._length])

    def go_on(self, token: int) -> None:
        """Also finds the likeliest next token, as whoever writes with a model has to."""
        known = self._length
        self._text[known] = token
        self._length += 1
        int(read_last(self._decoder, self._text[: self._length], known).argmax())


def _import_modules() -> None:
    """What takes a second or more that is not the loading's."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import checkpoints.quantized  # noqa: F401


def _decoder(model: Model, spec: Spec, notes: list[Note]):
    decoder = model.decoder(spec.context)
    if isinstance(decoder, FusedDecoder) != (spec.engine is not Engine.MODULES):
        why = "; ".join(note.text for note in notes)
        raise SystemExit(f"{spec.path} does not run as {spec.engine.value} but on {type(decoder).__name__}: {why}")
    return decoder


def _stack(model: Model) -> Stack:
    if isinstance(model.runner, StackRunner):
        return model.runner.describe(1)
    from engine.parts import ModuleParts

    return describe(model.module.config, ModuleParts(model.module), 1)


def weights_of(stack: Stack) -> Weights:
    """Bytes and products of a model as its decoder is given it.

    Of experts, a token reads and multiplies those that it chooses.
    """
    read, products, held = 0.0, 0.0, 0.0
    for block in stack.blocks:
        parts = [(block.qkv, 1.0), (block.o, 1.0), *_of_mlp(block.mlp)]
        for projection, share in parts:
            read += share * _bytes(projection)
            products += share * _products(projection)
            held += _bytes(projection)
        held += sum(norm.nbytes for norm in vars(block.norms).values() if norm is not None)
        if isinstance(block.mlp, Mixture):  # a router counts little, and multiplies next to nothing
            read += block.mlp.router.logits.weight.nbytes
            held += block.mlp.router.logits.weight.nbytes
    head = _products(stack.head)
    at = address(stack.embedding)
    tied = any(address(matrix.weight) == at for matrix in stack.head if isinstance(matrix, Dense))
    held += _bytes(stack.head) + (0 if tied else stack.embedding.nbytes) + stack.final_norm.nbytes
    position = 2 * 2 * len(stack.blocks) * stack.kv_heads * stack.head_dim
    return Weights(int(held), int(read) + _bytes(stack.head), ModelSize(int(products), head, position))


def _of_mlp(mlp: GatedMlp | Mixture) -> list[tuple[Projection, float]]:
    """Its projections, each with the share of tokens that go through it."""
    if isinstance(mlp, GatedMlp):
        return [(mlp.gate_up, 1.0), (mlp.down, 1.0)]
    share = mlp.router.routing.top_k / len(mlp.experts)
    found = [(projection, share) for one in mlp.experts for projection in (one.gate_up, one.down)]
    if mlp.shared is not None:
        found += [(mlp.shared.gate_up, 1.0), (mlp.shared.down, 1.0)]
    return found


def _bytes(projection: Projection) -> int:
    return sum(one.weight.nbytes if isinstance(one, Dense) else one.prepared.nbytes for one in projection)


def _products(projection: Projection) -> int:
    return sum(
        one.weight.shape[0] * one.weight.shape[1] if isinstance(one, Dense) else one.prepared.n * one.prepared.k
        for one in projection
    )
