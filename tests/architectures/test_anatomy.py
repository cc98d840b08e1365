"""Which modules of a block are linears to be quantized, and why the others stay float."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from architectures.anatomy import Anatomy, by_shape, filled, numbers, template
from architectures.discover import examine
from architectures.linears import block_linears, is_linear
from benchmarks.models.tiny import Row
from benchmarks.models.tiny import tiny_model as model_of
from scales.fold import Folder
from tests.architectures.looking import apart, blocks_of, look
from tests.tiny import tiny_model


def test_a_class_of_linears_that_multiplies_is_one():
    block = blocks_of(tiny_model("falcon"))[0]
    linear = block.mlp.dense_h_to_4h
    assert type(linear).forward is not nn.Linear.forward and is_linear(linear)
    assert len(by_shape(block).linears) == 4


def test_a_class_that_gives_something_else_is_none():
    block = blocks_of(model_of(Row("llama4_text")))[1]
    router = block.feed_forward.router
    assert isinstance(router, nn.Linear) and not is_linear(router)
    assert "feed_forward.router" not in block_linears(block)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Asking(nn.Linear):
    def forward(self, x, how):
        return super().forward(x)


class Renamed(nn.Linear):
    def forward(self, states):
        return states @ self.weight.t() + (0 if self.bias is None else self.bias)


def test_only_what_computes_a_product_is_a_linear():
    assert is_linear(Renamed(4, 3)) and is_linear(Renamed(4, 3, bias=False)) and is_linear(nn.Linear(5, 2))
    assert not is_linear(Doubled(4, 3)) and not is_linear(Asking(4, 3)) and not is_linear(nn.Bilinear(2, 2, 2))
    changed = nn.Linear(4, 3)
    changed.forward = lambda x: x
    assert not is_linear(changed)


@pytest.mark.parametrize(
    ("name", "index", "kept"),
    [
        ("jetmoe", 0, {"mlp.router.layer": "a router", "self_attention.experts.router.layer": "a router"}),
        ("dbrx", 0, {"ffn.router.layer": "a router"}),
        ("qwen3_next", 0, {"mlp.shared_expert_gate": "a gate of few outputs"}),
        ("mixtral", 0, {}),  # its router is no linear but a parameter
    ],
)
def test_routers_and_gates_stay_float(name, index, kept):
    found = by_shape(blocks_of(apart(model_of(Row(name))))[index])
    assert found.kept == kept and not set(kept) & set(found.linears)
    experts = [local for local in found.linears if numbers(local)]
    assert len(experts) >= 4 * 2, "each expert's are linears by themselves"


class Moe(nn.Module):
    """A router without a name that says so, beside a list of as many modules as it has outputs."""

    def __init__(self):
        super().__init__()
        self.choose = nn.Linear(64, 12)
        self.parts = nn.ModuleList([nn.Linear(64, 64) for _ in range(12)])
        self.other = nn.Linear(64, 16)


def test_as_many_outputs_as_there_are_experts_beside_it_make_a_router():
    found = by_shape(Moe())
    assert found.kept == {"choose": "a router"}
    assert found.linears == (*(f"parts.{index}" for index in range(12)), "other")


@pytest.mark.parametrize(("inputs", "fits"), [(48, False), (2, False), (80, False), (96, True), (32, True)])
def test_a_width_that_no_group_size_divides_stays_float_and_is_named(inputs, fits):
    block = nn.ModuleDict(dict(odd=nn.Linear(inputs, 16), even=nn.Linear(64, 16)))
    reason = {} if fits else {"odd": f"no group size divides its {inputs} inputs"}
    assert by_shape(block) == Anatomy(("odd", "even") if fits else ("even",), kept=reason)


class Block(nn.Module):
    """Linears that are called, that are read, both, and neither."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.called, self.measured, self.read, self.idle = (nn.Linear(32, 32, bias=False) for _ in range(4))

    def forward(self, hidden_states):
        x = self.norm(hidden_states)
        y = self.called(x) + self.measured(x) / self.measured.weight.norm()
        return hidden_states + y + functional.linear(x, self.read.weight)


def test_a_linear_whose_weight_other_code_reads_stays_float():
    block = Block().requires_grad_(False)
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
    found = examine(block, lambda: block(x), by_shape(block), Folder(None), 0)
    assert found.linears == ("called",) and found.kept == {
        "measured": "other code reads its weight",
        "read": "the block does not call it",
        "idle": "the block does not call it",
    }
    assert found.edges == (), "the norm feeds what cannot be divided by it"


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_of_mamba_one_projection_is_read_and_not_called(name):
    found = look(model_of(Row(name)) if name == "mamba" else apart(model_of(Row(name))))
    (projection,) = [local for local in found.kept if local.endswith("dt_proj")]
    assert found.kept == {projection: "the block does not call it"}
    assert found.linears[:2] == tuple(projection.replace("dt_proj", part) for part in ("in_proj", "x_proj"))


def test_what_no_edge_scales_is_told():
    found = look(model_of(Row("olmo2")))
    assert found.uncovered == (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"
    )  # fmt: skip


def test_numbers_of_names():
    name = "mlp.experts.12.up_proj"
    assert (template(name), numbers(name)) == ("mlp.experts.*.up_proj", ("12",))
    assert filled(template(name), ("3",)) == "mlp.experts.3.up_proj"
    assert (template("mlp.w1"), numbers("mlp.w1")) == ("mlp.w1", ()), "a number within a name is none of a module"
    assert template("0.1") == "*.*" and numbers("parts.0.1") == ("0", "1")
