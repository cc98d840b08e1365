"""What blocks may be made of besides a Llama's: each kind on every instruction set, and what none may be."""

import copy
from dataclasses import replace

import pytest
from torch import nn

from engine.parts import ModuleParts
from engine.stack import describe
from qlinear.backends.cpu import native
from qlinear.backends.cpu.backend import CpuBackend
from qlinear.backends.stack import Unsupported
from qlinear.grid import Grid
from qlinear.packing import PackedWeight
from qlinear.replace import LinearWeight, replace_linears
from qlinear.solvers.rtn import rtn
from tests.engine.test_fused import AVAILABLE, distance, float_logits, fused, quantized, stepped, tokens_of
from tests.reading import read_all
from tests.tiny import in_bfloat16, tiny_model

PARALLEL = dict(cohere2={}, stablelm=dict(use_parallel_residual=True))


@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("model_type", ["olmo2", "cohere2", "hunyuan_v1_dense", "starcoder2", "arcee", "apertus"])
def test_every_kind_of_block_on_every_instruction_set(model_type, isa):
    if isa not in AVAILABLE:
        pytest.skip(f"this machine has no {isa}")
    native.select_isa(isa)
    try:
        model, exact = quantized(model_type)
        tokens = tokens_of(50)
        expected, decoder = float_logits(exact.double(), tokens), fused(model)
        assert distance(stepped(decoder, tokens, 9), expected[8:]) < 0.016
        assert distance(read_all(decoder, tokens), expected) < 0.016
    finally:
        native.select_isa("")


@pytest.mark.parametrize("model_type", ["cohere2", "stablelm"])
def test_attention_beside_an_mlp_that_is_stored_otherwise(model_type):
    """What both read is laid out for the one, and then for the other: here one is quantized only."""
    model = in_bfloat16(tiny_model(model_type, **PARALLEL[model_type]))
    exact = copy.deepcopy(model).double()
    for name, linear in [one for one in model.named_modules() if one[0].endswith(("gate_proj", "up_proj"))]:
        grid = rtn(linear.weight, Grid(4, 32))
        exact.get_submodule(name).weight = nn.Parameter(grid.dequantize().double())
        replace_linears(model, {name: LinearWeight(PackedWeight.pack(grid), None)}, CpuBackend())
    tokens = tokens_of(50)
    expected, decoder = float_logits(exact, tokens), fused(model)
    assert distance(read_all(decoder, tokens), expected) < 0.012
    assert distance(stepped(decoder, tokens, 40), expected[39:]) < 0.012


@pytest.mark.parametrize(
    "model_type, change, reason",
    [
        ("qwen3_moe", dict(parallel=True), "does not run a mixture of experts beside the attention"),
        ("gemma2", dict(layer_norm=True), "takes layer norms before projections only"),
        ("stablelm", dict(layer_norm=False), "takes biases of layer norms only"),
        ("olmo2", dict(turned_first=True), "does not norm all heads together after the rotation"),
        ("glm4", dict(turned_first=True), "does not norm heads whose neighbouring features it has turned"),
        ("llama", dict(activation="relu2"), "does not know the activation relu2"),
        ("arcee", dict(activation="xielu"), "takes an xielu of four numbers, not of 0"),
    ],
)
def test_blocks_that_no_family_has(model_type, change, reason):
    model = in_bfloat16(tiny_model(model_type))
    stack = describe(model.config, ModuleParts(model), 32)
    with pytest.raises(Unsupported, match=reason):
        CpuBackend().decoder(replace(stack, **change), 32, 16)
