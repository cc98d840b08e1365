"""Experts taken apart compute what they computed as one tensor; what nobody understands stays whole."""

import pytest
import torch
from torch import nn

from architectures.expert_runs import run_expert
from architectures.experts import take_apart
from benchmarks.models.tiny import Row
from benchmarks.models.tiny import tiny_model as model_of
from tests.architectures.looking import apart
from tests.tiny import tiny_tokens

# Row -> how many experts' linears its two or more layers have: 4 experts of gate, up and down in each.
COUNTS = {
    "qwen3_moe": 24, "mixtral": 24, "granitemoe": 24, "olmoe": 24, "phimoe": 24, "deepseek_v2": 24, "qwen3_next": 24,
    "deepseek_v3": 12, "ernie4_5_moe": 12, "glm4_moe": 12,  # the first layer is dense
    "gpt_oss": 48,  # transposed, in turns, and with biases
    "llama4_text": 12,  # transposed, in the second layer, and run on every expert's tokens
    "dbrx": 24,  # its own class
    "jetmoe": 32,  # its own class too: 4 experts of attention and of the MLP, two linears each
    "nemotron_h": 8,  # without a gate, in one of the four layers
    "longcat_flash": 24,  # beside experts that do nothing
    "lfm2_moe": 24, "minimax": 24, "granitemoehybrid": 24, "qwen3_5_moe_text": 24,
}  # fmt: skip


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(tiny_tokens(), use_cache=False).logits.double()


@pytest.mark.parametrize("name", COUNTS)
def test_the_model_taken_apart_gives_the_same_logits(name):
    model = model_of(Row(name))
    before, held = logits(model), sum(parameter.numel() for parameter in model.parameters())
    origins = take_apart(model.to("meta"))
    assert len(origins) == COUNTS[name]
    model = apart(model_of(Row(name)))
    assert (logits(model) - before).norm() <= 1e-6 * before.norm()
    if name != "longcat_flash":  # which has room for gates of experts that do nothing
        assert sum(parameter.numel() for parameter in model.parameters()) == held
    experts = {local.rpartition(".")[0] for local in origins}
    assert all(type(model.get_submodule(expert)) is nn.Linear for expert in experts)
    convolutions = ("conv1d.weight", "conv.weight")
    assert not [n for n, p in model.named_parameters() if p.ndim == 3 and not n.endswith(convolutions)]


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "dbrx", "nemotron_h"])
def test_an_expert_that_is_changed_shows(name):
    """Each one's linears are those that run: zeros in one are missed."""
    model = apart(model_of(Row(name)))
    before = logits(model)
    experts = next(module for module in model.modules() if getattr(module, "expert_count", 0))
    for index in range(4):
        weight = experts.get_submodule(str(index)).down_proj.weight
        kept = weight.data.clone()
        weight.data.zero_()
        assert (logits(model) - before).norm() > 1e-4 * before.norm(), index
        weight.data.copy_(kept)


def test_where_each_part_lies_in_the_whole():
    model = model_of(Row("gpt_oss"))
    held = dict(model.named_parameters())
    stacked = held["model.layers.0.mlp.experts.gate_up_proj"]
    origins = take_apart(model.to("meta"))
    up = origins["model.layers.0.mlp.experts.2.up_proj.weight"]
    assert (up.tensor, up.expert, up.part) == ("model.layers.0.mlp.experts.gate_up_proj", None, None)
    assert torch.equal(up.take(stacked), stacked[2].t()[1::2])
    model = model_of(Row("qwen3_moe"))
    held = dict(model.named_parameters())
    stacked = held["model.layers.1.mlp.experts.gate_up_proj"]
    origins = take_apart(model.to("meta"))
    up = origins["model.layers.1.mlp.experts.3.up_proj.weight"]
    assert (up.tensor, up.expert, up.part) == ("model.layers.1.mlp.experts.gate_up_proj", 3, 1)
    assert torch.equal(up.take(stacked), stacked[3][len(stacked[3]) // 2 :])


class Experts(nn.Module):
    """Of a class that nobody knows, in the arrangement of most."""

    def __init__(self, experts: int = 3, hidden: int = 32, intermediate: int = 16):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * intermediate, hidden))
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, intermediate))
        self.act_fn = nn.SiLU()

    def run(self, x, index):
        gate, up = (x @ self.gate_up_proj[index].t()).chunk(2, dim=-1)
        return (self.act_fn(gate) * up) @ self.down_proj[index].t()

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for token, (chosen, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for index, weight in zip(chosen.tolist(), weights, strict=True):
                out[token] += weight * self.run(hidden_states[token], index)
        return out


class UpFirst(Experts):
    def run(self, x, index):
        up, gate = (x @ self.gate_up_proj[index].t()).chunk(2, dim=-1)
        return (self.act_fn(gate) * up) @ self.down_proj[index].t()


class WeighedBefore(Experts):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return super().forward(hidden_states * top_k_weights.sum(-1, keepdim=True), top_k_index, top_k_weights)


class Raising(Experts):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        raise NotImplementedError


class Wide(Experts):
    def forward(self, hidden_states, top_k_index):
        return hidden_states


@pytest.mark.parametrize(
    ("kind", "parts"), [(Experts, 9), (UpFirst, 0), (WeighedBefore, 0), (Raising, 0), (Wide, 0)]
)  # fmt: skip
def test_a_class_nobody_knows_is_taken_apart_only_if_it_computes_the_same(kind, parts):
    with torch.device("meta"):
        model = nn.ModuleDict(dict(block=kind()))
    before = dict(model.named_parameters())
    origins = take_apart(model)
    assert len(origins) == parts
    if parts:
        assert set(origins) == {f"block.{e}.{part}_proj.weight" for e in range(3) for part in ("gate", "up", "down")}
    else:
        assert dict(model.named_parameters()) == before and "forward" not in vars(model["block"])


def test_one_expert_by_itself():
    """In float64, with the activation of its class."""
    model = apart(model_of(Row("mixtral")))
    experts = model.model.layers[0].mlp.experts
    one = experts.get_submodule("2")
    x = torch.randn(5, one.up_proj.in_features, generator=torch.Generator().manual_seed(0))
    gate, up = (x.double() @ part.weight.double().t() for part in (one.gate_proj, one.up_proj))
    expected = (gate * gate.sigmoid() * up) @ one.down_proj.weight.double().t()
    with torch.no_grad():
        torch.testing.assert_close(run_expert(experts, one, x).double(), expected, rtol=1e-4, atol=1e-5)


def test_gpt2s_convolutions_are_linears_turned_round():
    model = model_of(Row("gpt2"))
    before, held = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model = apart(model)
    linear = model.transformer.h[0].mlp.c_fc
    assert type(linear) is nn.Linear
    assert torch.equal(linear.weight, held["transformer.h.0.mlp.c_fc.weight"].t())
    assert torch.equal(linear.bias, held["transformer.h.0.mlp.c_fc.bias"])
    assert (logits(model) - before).norm() <= 1e-6 * before.norm()
