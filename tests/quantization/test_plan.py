"""What is going to be done to a model, settled before a weight is read: units, group sizes, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qlinear.errors import AwqError, GridError, ModelError
from quantization.plan import make_plan
from quantization.recipe import Recipe
from tests.tiny import MODEL_TYPES, VARIANTS, tiny_model


def opened(model):
    """In the place of a model that was opened from disk."""
    return SimpleNamespace(name="tiny", model=model, config=model.config)


def plan(model, **fields):
    return make_plan(opened(model), Recipe(**fields))


class Odd(nn.Module):
    """Of a family nobody knows: linears here and there, a head that is one too, and one used twice."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.config = SimpleNamespace(model_type="odd")
        self.embed = nn.Embedding(8, width)
        self.first = nn.Linear(width, 96)
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(96, 32), nn.GELU(), nn.Linear(32, width))])
        self.again = self.first
        self.head = nn.Linear(width, 8)

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
    assert found.family.model_type == model.config.model_type
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
    known = {name for name in outside if name != found.head}
    # what reads pictures, and what narrows and widens OPT's embedding, is no part of a decoder block
    assert all("vision" in name or name.endswith(("project_in", "project_out")) for name in known), known


def test_each_linear_of_an_unknown_family_is_a_unit():
    found = plan(Odd(), awq="none")
    assert found.family is None and found.head == "head" and found.group_size == 32
    assert found.units == ("first", "parts.0.0", "parts.0.2")


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
        "group size 32 does not divide lm_head (in_features 48); none of (32, 64, 128, 256) does"
    )


@pytest.mark.parametrize("size", [128, 256])
def test_a_group_size_that_does_not_divide(size):
    message = refused(GridError, tiny_model("llama"), group_size=size)
    assert message == (
        f"group size {size} does not divide model.layers.0.self_attn.q_proj (in_features 64); use `group_size=32 or 64`"
    )


def test_no_group_size_divides():
    message = refused(GridError, tiny_model("llama", hidden_size=48))
    assert message == (
        "no group size (32, 64, 128, 256) divides model.layers.0.self_attn.q_proj (in_features 48), so this model "
        "cannot be quantized"
    )
    assert "parts.0.0 (in_features 96)" in refused(GridError, Odd(), awq="none", group_size=64)


@pytest.mark.parametrize("awq", ["auto", "run", "load"])
def test_a_family_without_mappings_is_refused_where_awq_is_asked_for(awq):
    message = refused(ModelError, Odd(), awq=awq)
    assert "'odd'" in message and "`awq=none`" in message and "llama" in message


def test_a_family_known_not_to_fit_is_refused_with_the_reason():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "mixtral", num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_attention_heads=2,
                num_key_value_heads=2, vocab_size=8, num_local_experts=2,
            )
        )  # fmt: skip
    assert "'mixtral': its experts" in refused(ModelError, model, awq="run")
    found = plan(model, awq="none")
    attention = "model.layers.0.self_attn"
    assert found.family is None and found.units == tuple(f"{attention}.{part}_proj" for part in "qkvo")


def test_a_model_without_linears():
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=8)
    message = refused(ModelError, AutoModelForCausalLM.from_config(config), awq="none")
    assert message == "tiny has no linear layer to quantize"
