"""Tiny models on the grid, and a fused decoder's logits beside those of float32: for tests of any backend's."""

import copy

import torch
from torch import nn

from architectures.registry import find_family
from qlinear.grid import Grid
from qlinear.packing import PackedWeight
from qlinear.replace import LinearWeight, replace_linears
from qlinear.solvers.rtn import rtn
from tests.reading import read_last
from tests.tiny import VOCAB, in_bfloat16, tiny_model

GROUP = 32


def tokens_of(length, seed=0):
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def quantized_on(backend, model_type, bits=4, head=True, join=True, **options):
    """A tiny bfloat16 model with its linears on the grid, on a backend; and one in float32 of the same weights."""
    model = in_bfloat16(tiny_model(model_type, **options))
    exact = copy.deepcopy(model).float()
    weights = {}
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or linear.in_features % GROUP or (name == "lm_head" and not head):
            continue
        grid = rtn(linear.weight, Grid(bits, GROUP))
        exact.get_submodule(name).weight = nn.Parameter(grid.dequantize())  # lets go of a tied embedding
        weights[name] = LinearWeight(PackedWeight.pack(grid), linear.bias)
    family = find_family(model.config)
    for block in family.block_names(model) if join else ():
        for group in family.joined_inputs(gate_up=True):
            names = [f"{block}.{name}" for name in group]
            replace_linears(model, {name: weights.pop(name) for name in names}, backend)
    for name, weight in weights.items():
        replace_linears(model, {name: weight}, backend)
    return model.to(backend.device), exact


def stepped(decoder, tokens, first):
    """Logits `(len(tokens) - first + 1, vocabulary)`: the first tokens at once, then one by one."""
    rows = [read_last(decoder, tokens[:first]).clone()]
    rows += [read_last(decoder, tokens[:stop], stop - 1).clone() for stop in range(first + 1, len(tokens) + 1)]
    return torch.stack(rows)


def float_logits(exact, tokens):
    with torch.inference_mode():
        return exact(input_ids=tokens.unsqueeze(0)).logits[0]


def distance(logits, expected):
    """Root mean square, relative."""
    return ((logits - expected).square().mean() / expected.square().mean()).sqrt().item()
