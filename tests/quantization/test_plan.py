"""What is going to be done to a model, settled before a weight is read: units, group sizes, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from architectures.anatomy import Anatomy
from architectures.experts import take_apart
from architectures.registry import find_family
from qlinear.errors import AwqError, GridError, ModelError
from quantization.plan import make_plan
from quantization.recipe import Recipe
from tests.tiny import MODEL_TYPES, VARIANTS, tiny_model


def opened(model):
    """In the place of a model that was opened from disk."""
    return SimpleNamespace(name="tiny", model=model, config=model.config)


def plan(model, **fields):
    return make_plan(opened(model), Recipe(**fields).settled())


class Odd(nn.Module):
    """Of a type nobody knows: linears here and there in no list, a head that is one too, and one used twice."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.config = AutoConfig.for_model("llama", num_hidden_layers=2)
        self.config.model_type = "odd"
        self.embed = nn.Embedding(8, width)
        self.first = nn.Linear(width, 96)
        self.parts = nn.Sequential(nn.Linear(96, 32), nn.GELU(), nn.Linear(32, width))
        self.again = self.first
        self.head = nn.Linear(width, 8)

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head


def refused(kind: type[AwqError], model, **fields) -> str:
    with pytest.raises(kind) as error:
        plan(model, **fields)
    assert "\n" not in str(error.value) and "--" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("awq", ["run", "none"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_decoder_blocks_are_the_units(model_type, awq):
    """With AWQ and without: what is written does not depend on it."""
    model = tiny_model(model_type)
    found = plan(model, awq=awq, group_size=32)
    family = find_family(model.config)
    assert found.blocks and len(found.anatomies) == len(found.units)
    assert all(anatomy.edges == family.edges for anatomy in found.anatomies)
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == 2]
    (blocks,) = [name for name in lists if "vision" not in name]
    assert found.units == (f"{blocks}.0", f"{blocks}.1")
    assert model.get_submodule(found.head) is model.get_output_embeddings()


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_every_linear_but_the_head_is_in_a_unit(model_type, overrides):
    model = tiny_model(model_type, **overrides)
    found = plan(model, awq="none", group_size=32)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outside = {name for name in linears if not name.startswith(tuple(f"{unit}." for unit in found.units))}
    inside = {f"{unit}.{name}" for unit, a in zip(found.units, found.anatomies, strict=True) for name in a.linears}
    assert inside == linears - outside and not any(anatomy.kept for anatomy in found.anatomies)
    known = {name for name in outside if name != found.head}
    # what reads pictures, and what narrows and widens OPT's embedding, is no part of a decoder block
    assert all("vision" in name or name.endswith(("project_in", "project_out")) for name in known), known


def test_without_a_list_of_blocks_each_linear_is_a_unit():
    found = plan(Odd(), awq="none", solver="rtn")
    assert not found.blocks and found.head == "head" and found.group_size == 32
    assert found.units == ("first", "parts.0", "parts.2")
    assert found.anatomies == (Anatomy(("",)),) * 3


@pytest.mark.parametrize(
    ("hidden", "ffn", "size"), [(64, 128, 64), (128, 256, 128), (256, 256, 128), (96, 192, 32), (128, 96, 32)]
)
def test_the_group_size_nobody_named(hidden, ffn, size):
    """The largest of 128, 64 and 32 that divides every width; never 256."""
    model = tiny_model("llama", hidden_size=hidden, intermediate_size=ffn)
    assert plan(model).group_size == size
    assert plan(model, group_size=32).group_size == 32


def test_the_head_does_not_count_unless_it_is_quantized():
    model = tiny_model("llama")
    model.lm_head = nn.Linear(48, 8)
    assert plan(model).group_size == 64
    assert refused(GridError, model, lm_head=True) == (
        "group size 64 does not divide lm_head (in_features 48); none of (32, 64, 128, 256) does"
    )


@pytest.mark.parametrize("size", [128, 256])
def test_a_group_size_that_does_not_divide(size):
    message = refused(GridError, tiny_model("llama"), group_size=size)
    assert message == (
        f"group size {size} does not divide model.layers.0.self_attn.q_proj (in_features 64); use `group_size=32 or 64`"
    )


def test_widths_that_no_group_size_divides_stay_float_and_are_named():
    found = plan(tiny_model("llama", hidden_size=48))
    assert found.group_size == 128
    for anatomy in found.anatomies:
        assert anatomy.linears == ("mlp.down_proj",)
        assert set(anatomy.kept.values()) == {"no group size divides its 48 inputs"} and len(anatomy.kept) == 6


def test_no_group_size_divides_any():
    message = refused(GridError, tiny_model("llama", hidden_size=48, intermediate_size=100))
    assert message == (
        "there is no linear layer whose inputs a group size (32, 64, 128, 256) divides, so nothing to quantize"
    )
    assert "first (in_features 96)" not in refused(GridError, Odd(), awq="none", solver="rtn", group_size=128)
    assert "parts.0 (in_features 96)" in refused(GridError, Odd(), awq="none", solver="rtn", group_size=64)


@pytest.mark.parametrize(
    "fields", [dict(awq="auto"), dict(awq="run"), dict(awq="load"), dict(awq="none", solver="gptq")]
)
def test_without_a_list_of_blocks_only_rounding_is_left(fields):
    assert refused(ModelError, Odd(), **fields) == (
        "no list of decoder blocks is to be found in tiny; `awq=none` with `solver=rtn` rounds without running them"
    )


def test_experts_taken_apart_are_among_the_linears():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "mixtral", num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_attention_heads=2,
                num_key_value_heads=2, vocab_size=8, num_local_experts=2,
            )
        )  # fmt: skip
    take_apart(model)
    found = plan(model, awq="run")
    assert found.units == ("model.layers.0",)
    attention = {f"self_attn.{part}_proj" for part in "qkvo"}
    experts = {f"mlp.experts.{e}.{part}_proj" for e in range(2) for part in ("gate", "up", "down")}
    assert set(found.anatomies[0].linears) == attention | experts


def test_a_model_without_linears():
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=8)
    message = refused(GridError, AutoModelForCausalLM.from_config(config), awq="none", solver="rtn")
    assert "there is no linear layer" in message
