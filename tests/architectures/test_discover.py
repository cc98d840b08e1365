"""Edges found by running a block: those of the table, those of types without a row, and none that is not one."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from architectures.anatomy import Anatomy, Found, by_shape
from architectures.family import Edge, Kind
from architectures.registry import find_family
from benchmarks.models.tiny import Row
from benchmarks.models.tiny import tiny_model as model_of
from scales import fold
from tests.architectures.looking import apart, blocks_of, indices, look, look_at_all
from tests.tiny import VARIANTS, known_of, tiny_model, tiny_tokens

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GROUPED = [*range(16), *range(16), *range(16, 32), *range(16, 32)]  # 4 heads of width 16 over 2 of values


def told(edge: Edge, config) -> tuple:
    """All that an edge says but the module that the search compares."""
    return edge.prev, frozenset(edge.layers), *map(str, indices(edge, config)), edge.kind.offset, edge.kind.power


def assert_only_rounded(block, before: dict) -> None:
    for name, tensor in block.state_dict().items():
        assert torch.allclose(tensor, before[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_what_is_found_is_what_the_table_says(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    family, block = find_family(model.config), blocks_of(model)[0]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    found = look(model)
    assert {told(edge, model.config) for edge in found.edges} == {told(edge, model.config) for edge in family.edges}
    assert {edge.prev: edge.inspect for edge in found.edges} == {edge.prev: edge.inspect for edge in family.edges}
    assert set(found.unclipped) == set(family.unclipped)
    assert found.found is Found.PROBE and found.kept == {} and found.linears == by_shape(block).linears
    assert_only_rounded(block, before)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "falcon", "phi3"])
def test_a_row_that_holds_is_taken_as_it_is(model_type):
    model = tiny_model(model_type)
    known = known_of(model, blocks_of(model)[0])
    assert look(model, known=known) == replace(known, found=Found.TABLE)


# What is wrong of a row, by what one of its edges becomes.
WRONG = {
    "q feeds o": lambda edge: Edge("self_attn.q_proj", ("self_attn.o_proj",), "self_attn.o_proj"),
    "a consumer is left out": lambda edge: replace(edge, layers=edge.layers[:-1]) if len(edge.layers) > 1 else edge,
    "another offset": lambda edge: replace(edge, kind=Kind(offset=0.5)) if "layernorm" in edge.prev else edge,
    "another power": lambda edge: replace(edge, kind=Kind(power=2)) if edge.prev == "mlp.up_proj" else edge,
    "a gate for a factor": lambda edge: replace(edge, prev="mlp.gate_proj") if edge.prev == "mlp.up_proj" else edge,
    "heads in another order": lambda edge: replace(edge, kind=Kind(channels=lambda config: torch.arange(64) % 32))
    if edge.prev == "self_attn.v_proj" else edge,
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_row_that_is_wrong_is_thrown_out(what):
    """Whichever of its edges: all are then looked for anew."""
    model = tiny_model("llama")
    family, block = find_family(model.config), blocks_of(model)[0]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    wrong = tuple(WRONG[what](edge) for edge in family.edges)
    found = look(model, known=replace(by_shape(block), edges=wrong))
    assert found.found is Found.PROBE
    assert {told(edge, model.config) for edge in found.edges} == {told(edge, model.config) for edge in family.edges}
    assert_only_rounded(block, before)


# One kind of block each: (row, block) -> (producer, consumers, rows, channels, offset of its norm, power).
NONE_TO_O = ("self_attn.v_proj", ("self_attn.o_proj",), None, GROUPED)
MLA_KV_ROWS = [row for head in range(4) for row in range(32 * head + 16, 32 * head + 32)]
MLA = [
    ("input_layernorm", ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")),
    ("self_attn.q_a_layernorm", ("self_attn.q_b_proj",)),
    ("self_attn.kv_a_layernorm", ("self_attn.kv_b_proj",)),
    ("self_attn.kv_b_proj", ("self_attn.o_proj",), MLA_KV_ROWS),
]
OTHERS = {
    ("deepseek_v3", 0): [
        *MLA,
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ("mlp.up_proj", ("mlp.down_proj",)),
    ],
    # Its convolution is between two gates, which would do as well: one producer for one consumer.
    ("lfm2", 0): [
        ("operator_norm", ("conv.in_proj",)),
        ("ffn_norm", ("feed_forward.w1", "feed_forward.w3")),
        ("conv.in_proj", ("conv.out_proj",), list(range(64))),
        ("feed_forward.w3", ("feed_forward.w2",)),
    ],
    ("nemotron", 0): [
        ("input_layernorm", QKV, None, None, 1.0),
        NONE_TO_O,
        ("post_attention_layernorm", ("mlp.up_proj",), None, None, 1.0),
        ("mlp.up_proj", ("mlp.down_proj",), None, None, 0.0, 2),  # its squared ReLU
    ],
    ("arcee", 0): [
        ("input_layernorm", QKV),
        NONE_TO_O,
        ("post_attention_layernorm", ("mlp.up_proj",)),
        ("mlp.up_proj", ("mlp.down_proj",), None, None, 0.0, 2),
    ],
    # Its norms stand behind attention and MLP.
    ("olmo2", 0): [NONE_TO_O, ("mlp.up_proj", ("mlp.down_proj",))],
    # Through its GELU, ungated, none.
    ("gpt2", 0): [
        ("ln_1", ("attn.c_attn",)),
        ("attn.c_attn", ("attn.c_proj",), list(range(128, 192))),
        ("ln_2", ("mlp.c_fc",)),
    ],
    # What its norms give is the residual too.
    ("minimax", 0): [NONE_TO_O, *((f"mlp.experts.{e}.up_proj", (f"mlp.experts.{e}.down_proj",)) for e in range(4))],
    # Keys and values are one linear, read by all experts of attention; gate and up are another.
    ("jetmoe", 0): [
        (
            "input_layernorm",
            tuple(f"self_attention.experts.input_linear.{e}" for e in range(4))
            + ("self_attention.experts.router.layer", "self_attention.kv_proj"),
        ),
        (
            "self_attention.kv_proj",
            tuple(f"self_attention.experts.output_linear.{e}" for e in range(4)),
            list(range(32, 64)),
        ),
        ("post_attention_layernorm", (*(f"mlp.input_linear.{e}" for e in range(4)), "mlp.router.layer")),
        *((f"mlp.input_linear.{e}", (f"mlp.output_linear.{e}",), list(range(128, 256))) for e in range(4)),
    ],
    # Gate and up lie in turns in one tensor, and its gate is added to: none through it.
    ("gpt_oss", 0): [
        ("input_layernorm", QKV),
        NONE_TO_O,
        (
            "post_attention_layernorm",
            ("mlp.router", *(f"mlp.experts.{e}.{part}_proj" for e in range(4) for part in ("gate", "up"))),
        ),
    ],
    # One norm feeds the router, the experts, the shared expert and its gate, which all have to be divided.
    ("qwen3_next", 1): [
        ("input_layernorm", QKV, None, None, 1.0),
        NONE_TO_O,
        (
            "post_attention_layernorm",
            (
                "mlp.gate", "mlp.shared_expert_gate", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj",
                *(f"mlp.experts.{e}.{part}_proj" for e in range(4) for part in ("gate", "up")),
            ), None, None, 1.0,
        ),
        *((f"mlp.experts.{e}.up_proj", (f"mlp.experts.{e}.down_proj",)) for e in range(4)),
        ("mlp.shared_expert.up_proj", ("mlp.shared_expert.down_proj",)),
    ],
    ("nemotron_h", 0): [("norm", ("mixer.in_proj",)), ("mixer.norm", ("mixer.out_proj",))],
}  # fmt: skip


def expected(prev, layers, rows=None, channels=None, offset=0.0, power=1) -> tuple:
    return prev, frozenset(layers), str(rows), str(channels), offset, power


@cache
def looked_at(name: str) -> tuple:
    model = apart(model_of(Row(name)))
    with torch.no_grad():
        return model, look_at_all(model), model(tiny_tokens()).logits


@pytest.mark.parametrize(("name", "index"), OTHERS)
def test_what_is_found_of_types_without_a_row(name, index):
    model, anatomies, _ = looked_at(name)
    found = {told(edge, model.config) for edge in anatomies[index].edges}
    assert found == {expected(*edge) for edge in OTHERS[name, index]}


# With the routers, which are divided but not quantized, among the consumers.
FOLDED = (
    "dbrx", "deepseek_v3", "falcon_h1", "gpt2", "gpt_oss", "granitemoe", "jetmoe", "lfm2", "llama4_text",
    "longcat_flash", "mixtral", "nemotron_h", "nemotron", "qwen3_moe", "qwen3_next",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_folding_all_that_is_found_leaves_the_logits(name):
    model, anatomies, before = looked_at(name)
    held = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    for block, anatomy in zip(blocks_of(model), anatomies, strict=True):
        assert anatomy.edges
        for edge in anatomy.edges:
            length = fold.scale_length(block, edge, model.config)
            vector = torch.empty(length).uniform_(-1, 1, generator=generator).exp()
            fold.apply_scale(block, edge, vector, model.config)
    with torch.no_grad():
        after = model(tiny_tokens()).logits
    model.load_state_dict(held)
    assert (after - before).norm() <= 2e-5 * before.norm()


def test_experts_that_no_token_reached_have_their_edges_too():
    model = with_experts_unreached()
    edges = {edge.prev: edge for edge in look(model).edges}
    assert edges.keys() == {"input_layernorm", "post_attention_layernorm", "self_attn.v_proj"} | {
        f"mlp.experts.{e}.up_proj" for e in range(4)
    }
    assert len(edges["post_attention_layernorm"].layers) == 2 * 4 + 1


def test_an_edge_of_an_expert_that_no_token_reached_is_proven_too():
    model = with_experts_unreached()
    right = look(model)
    known = replace(by_shape(blocks_of(model)[0]), edges=right.edges)
    assert look(model, known=known).found is Found.TABLE
    wrong = tuple(
        replace(edge, prev="mlp.experts.3.gate_proj") if edge.prev == "mlp.experts.3.up_proj" else edge
        for edge in right.edges
    )
    found = look(model, known=replace(known, edges=wrong))
    assert found.found is Found.PROBE and set(found.edges) == set(right.edges)


def with_experts_unreached():
    """All tokens go to experts 0 and 1 of four."""
    model = apart(model_of(Row("qwen3_moe")))
    block = blocks_of(model)[0]
    reached: set[str] = set()
    for e in range(4):
        block.mlp.experts.get_submodule(f"{e}.up_proj").register_forward_pre_hook(lambda *_, e=e: reached.add(e))
    router = block.mlp.gate
    forward = router.forward

    def first_two(*args, **kwargs):
        logits, weights, chosen = forward(*args, **kwargs)
        return logits, weights, torch.arange(2).expand_as(chosen)

    router.forward = first_two
    look(model, known=Anatomy(()))
    assert reached == {0, 1}
    return model
