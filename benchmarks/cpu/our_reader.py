"""A quantized checkpoint on our engine, for the contestant: the whole stack at once, or the model's own modules."""

import re
import time

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - a second or more that is not the loading's
from torch import nn

import checkpoints.quantized  # noqa: F401 - nor is this
import run_awq
from benchmarks.cpu.contestant import Facts, Spec, Weights
from benchmarks.cpu.report import Engine, ModelSize
from benchmarks.machine import resident_bytes
from engine.decoder import read_last
from engine.fused import FusedDecoder
from engine.model import Model
from qlinear.process import trim_heap
from qlinear.progress import Note
from qlinear.replace import quantized_layers


class OurReader:
    """`benchmarks.cpu.contestant.Reader`."""

    def __init__(self, spec: Spec):
        torch.set_num_threads(spec.threads)
        fused, notes = spec.engine is Engine.FUSED, []
        before, start = resident_bytes(), time.perf_counter()
        model = run_awq.load(spec.path, flash_attention=fused, progress=notes.append)
        load_s = time.perf_counter() - start
        self.facts = Facts(load_s, before, weights_of(model.module))
        trim_heap()  # what loading left behind is not the decoder's
        self._decoder = _decoder(model, spec, notes)
        self._text, self._length = torch.zeros(spec.context, dtype=torch.int64), 0

    def begin(self, tokens: tuple[int, ...]) -> None:
        self._length = len(tokens)
        self._text[: self._length] = torch.tensor(tokens)
        read_last(self._decoder, self._text[: self._length])

    def go_on(self, token: int) -> None:
        """Also finds the likeliest next token, as whoever writes with a model has to."""
        known = self._length
        self._text[known] = token
        self._length += 1
        int(read_last(self._decoder, self._text[: self._length], known).argmax())


def _decoder(model: Model, spec: Spec, notes: list[Note]):
    decoder = model.decoder(spec.context)
    if isinstance(decoder, FusedDecoder) != (spec.engine is Engine.FUSED):
        why = "; ".join(note.text for note in notes)
        raise SystemExit(f"{spec.path} does not run as {spec.engine.value} but on {type(decoder).__name__}: {why}")
    return decoder


EXPERT = re.compile(r"\.experts\.\d+\.")


def weights_of(module: nn.Module) -> Weights:
    """Bytes and products of a causal LM of `transformers` whose layers have been prepared by their backend.

    Of experts, a token reads and multiplies those that it chooses.
    """
    layers, config = quantized_layers(module), module.config
    dense = {name: linear for name, linear in module.named_modules() if isinstance(linear, nn.Linear)}
    sizes = {name: layer.prepared.nbytes for name, layer in layers.items()}
    sizes |= {name: linear.weight.nbytes for name, linear in dense.items()}
    products = {name: one.in_features * one.out_features for name, one in [*layers.items(), *dense.items()]}
    # Norms and the embedding; an embedding that is the head too is counted there.
    rest = {parameter.data_ptr(): parameter.nbytes for parameter in module.parameters()}
    for linear in dense.values():
        rest.pop(linear.weight.data_ptr(), None)
    routers = sum(p.nbytes for name, p in module.named_parameters() if name.endswith(".mlp.gate.weight"))

    def of_a_token(numbers: dict[str, int]) -> int:
        all_of_it, experts = sum(numbers.values()), sum(one for name, one in numbers.items() if EXPERT.search(name))
        return all_of_it - experts + (experts * config.num_experts_per_tok // config.num_experts if experts else 0)

    head, head_dim = products["lm_head"], module.model.layers[0].self_attn.head_dim
    position_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    size = ModelSize(of_a_token(products) - head, head, position_bytes)
    return Weights(sum(sizes.values()) + sum(rest.values()), of_a_token(sizes) + routers, size)
