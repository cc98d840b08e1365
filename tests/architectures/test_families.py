"""What is known of each family: its edges and names, and that it is one file."""

import importlib
from collections import Counter
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoConfig

from architectures import families
from architectures.family import Family
from architectures.linears import block_linears
from architectures.registry import all_families, find_family, fused_families, gguf_readers, gguf_writers
from tests.tiny import FOUND_OUT_TYPES, LAYERS, MIXTURE_TYPES, MODEL_TYPES, VARIANTS, tiny_model

FILES = sorted(path.stem for path in Path(families.__path__[0]).glob("*.py") if path.stem != "__init__")

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
LLAMA = [
    ("input_layernorm", QKV),
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    ("post_attention_layernorm", GATE_UP),
    ("mlp.up_proj", ("mlp.down_proj",)),
]
GEMMA2 = [*LLAMA[:2], ("pre_feedforward_layernorm", GATE_UP), LLAMA[3]]
OPT = [
    ("self_attn_layer_norm", QKV),
    ("self_attn.v_proj", ("self_attn.out_proj",)),
    ("final_layer_norm", ("fc1",)),
    ("fc1", ("fc2",)),
]
FUSED = "self_attention.query_key_value"
FC1 = "mlp.dense_h_to_4h"
V_TO_DENSE = (FUSED, ("self_attention.dense",))
BLOOM = [("input_layernorm", (FUSED,)), V_TO_DENSE, ("post_attention_layernorm", (FC1,))]
FALCON_40B = [("ln_attn", (FUSED,)), V_TO_DENSE, ("ln_mlp", (FC1,))]

LLAMAS = ("ministral", "seed_oss", "ernie4_5", "cwm", "internlm3", "helium", "smollm3")

# What scale files written by llm-awq call them, less the ones it folds into an activation.
EXPECTED = [
    ("llama", {}, LLAMA),
    ("mistral", {}, LLAMA),
    ("qwen2", {}, LLAMA),
    ("qwen3", {}, LLAMA),
    ("granite", {}, LLAMA),
    *((model_type, {}, LLAMA) for model_type in LLAMAS),
    ("gemma", {}, LLAMA),
    ("gemma2", {}, GEMMA2),
    ("gemma3_text", {}, GEMMA2),
    ("gemma3", {}, GEMMA2),
    (
        "phi3",
        {},
        [
            ("input_layernorm", ("self_attn.qkv_proj",)),
            ("self_attn.qkv_proj", ("self_attn.o_proj",)),
            ("post_attention_layernorm", ("mlp.gate_up_proj",)),
            ("mlp.gate_up_proj", ("mlp.down_proj",)),
        ],
    ),
    ("opt", {}, OPT),
    ("opt", dict(activation_function="gelu"), OPT[:3]),
    ("opt", dict(do_layer_norm_before=False), [OPT[1], OPT[3]]),
    ("opt", dict(layer_norm_elementwise_affine=False), [OPT[1], OPT[3]]),
    ("starcoder2", {}, [*LLAMA[:2], ("post_attention_layernorm", ("mlp.c_fc",))]),
    (
        "gpt_neox",
        {},
        [
            ("input_layernorm", ("attention.query_key_value",)),
            ("attention.query_key_value", ("attention.dense",)),
            ("post_attention_layernorm", (FC1,)),
        ],
    ),
    ("bloom", {}, BLOOM),
    ("bloom", dict(apply_residual_connection_post_layernorm=True), [V_TO_DENSE]),
    ("falcon", {}, [("input_layernorm", (FC1, FUSED)), V_TO_DENSE]),
    ("falcon", dict(parallel_attn=False), BLOOM),
    ("falcon", dict(new_decoder_architecture=True), FALCON_40B),
    ("falcon", dict(new_decoder_architecture=True, num_ln_in_parallel_attn=2), FALCON_40B),
    (
        "falcon",
        dict(new_decoder_architecture=True, num_ln_in_parallel_attn=1),
        [("input_layernorm", (FC1, FUSED)), V_TO_DENSE],
    ),
]


@pytest.mark.parametrize(("model_type", "overrides", "expected"), EXPECTED)
def test_edges_of_a_config(model_type, overrides, expected):
    edges = find_family(AutoConfig.for_model(model_type, **overrides)).edges
    assert [(edge.prev, edge.layers) for edge in edges] == expected


@pytest.mark.parametrize("file", FILES)
def test_a_family_is_one_file(file):
    rows = importlib.import_module(f"architectures.families.{file}").FAMILIES
    assert isinstance(rows, tuple) and rows and all(isinstance(row, Family) for row in rows)
    assert all(row.model_type.startswith(file) for row in rows)
    assert all(all_families()[row.model_type] is row for row in rows)


def test_every_file_is_found_and_no_model_type_has_two_rows():
    modules = [importlib.import_module(f"architectures.families.{file}") for file in FILES]
    found = Counter(row.model_type for module in modules for row in module.FAMILIES)
    assert set(found.values()) == {1} and set(found) == set(all_families())
    assert set(found) == {*MODEL_TYPES, *MIXTURE_TYPES, *FOUND_OUT_TYPES}


def test_every_family_that_awq_scales_has_a_tiny_model():
    assert sorted(name for name, family in all_families().items() if family.edges) == sorted(MODEL_TYPES)
    assert {model_type for model_type, _ in VARIANTS} == set(MODEL_TYPES)


def test_which_families_are_fused_and_which_are_read_from_gguf():
    fused = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "granite", "starcoder2"}
    assert set(fused_families()) == {*fused, *LLAMAS, *MIXTURE_TYPES, *FOUND_OUT_TYPES}
    assert set(gguf_readers()) == {"gemma", "gemma2", "gemma3", "llama", "phi3", "qwen2", "qwen3", "smollm3"}
    for found in (fused_families(), gguf_writers()):
        assert all(all_families()[name] is family for name, family in found.items())


@pytest.mark.parametrize(
    ("model_type", "gate_up", "expected"),
    [
        ("llama", True, [QKV, GATE_UP]),
        ("llama", False, [QKV]),
        ("gemma2", True, [QKV, GATE_UP]),
        ("opt", True, [QKV]),
        ("phi3", True, []),  # its file has them joined
        ("falcon", True, []),  # one norm feeds attention and MLP, which are two modules
    ],
)
def test_linears_that_read_one_input_within_one_module(model_type, gate_up, expected):
    assert find_family(AutoConfig.for_model(model_type)).joined_inputs(gate_up) == expected


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_names_resolve_and_every_linear_is_found(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    family = find_family(model.config)
    names = family.block_names(model)
    assert len(names) == LAYERS and names[1] == f"{family.blocks}.1"
    for block in map(model.get_submodule, names):
        linears = block_linears(block)
        matrices = [name for name, parameter in block.named_parameters() if parameter.dim() == 2]
        assert [f"{name}.weight" for name in linears] == matrices
        assert set(family.unclipped) < set(linears)
        for edge in family.edges:
            assert block.get_submodule(edge.prev).weight is not None
            assert set(edge.layers) <= set(linears)
            assert any(layer.startswith(edge.inspect) for layer in edge.layers)
            assert isinstance(block.get_submodule(edge.inspect), nn.Module)


def test_names_are_matched_whole():
    """ "k_" is in "block_sparse_moe" too; only the linear named self_attn.k_proj is unclipped."""
    names = ("self_attn.k_proj", "block_sparse_moe.q_proj", "self_attn.k_proj_extra", "k_proj", "self_attn.v_proj")
    block = nn.Module()
    for name in names:
        parent = block
        for part in name.split(".")[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(name.split(".")[-1], nn.Linear(2, 3))
    block.add_module("norm", nn.LayerNorm(2))
    block.add_module("table", nn.Embedding(2, 2))
    linears = block_linears(block)
    assert set(linears) == set(names)
    assert all(linears[name] is block.get_submodule(name) for name in names)
    unclipped = find_family(AutoConfig.for_model("llama")).unclipped
    assert [name for name in linears if name in unclipped] == ["self_attn.k_proj"]


def test_a_type_without_a_row():
    """Its edges are found by running its blocks: `test_discover.py`."""
    assert find_family(AutoConfig.for_model("gpt2")) is None
    assert find_family(AutoConfig.for_model("dbrx")) is None
