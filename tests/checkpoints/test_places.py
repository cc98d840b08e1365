"""Where tensors lie in files whose names and arrangements are not the modules': experts above all."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from architectures.experts import take_apart
from benchmarks.models.tiny import Row
from benchmarks.models.tiny import tiny_model as model_of
from checkpoints.pretrained import open_pretrained
from qlinear.errors import ModelError
from tests.checkpoints.floats import refused
from tests.tiny import tiny_tokens

# Types whose files hold each expert by itself, as published ones do, ...
SINGLE = (
    "qwen3_moe", "mixtral", "olmoe", "phimoe", "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "minimax",
    "qwen3_next", "jamba", "lfm2_moe", "nemotron_h", "longcat_flash",
)  # fmt: skip
# ... and those that hold all of them in one tensor, or other things the other way round.
JOINED = ("gpt_oss", "llama4_text", "granitemoe", "jetmoe", "dbrx", "gpt2")


def saved(name: str, directory):
    model_of(Row(name)).save_pretrained(directory, max_shard_size="60KB")
    return str(directory)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(tiny_tokens(), use_cache=False).logits.double()


@pytest.mark.parametrize("name", [*SINGLE, *JOINED])
def test_what_is_opened_is_what_transformers_opens(name, tmp_path):
    """Each value exactly; the logits up to the order in which a token's experts are added up."""
    directory = saved(name, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected, held = logits(theirs), {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    origins = take_apart(theirs.to("meta"))
    opened = open_pretrained(directory)
    assert all(parameter.is_meta for parameter in opened.model.parameters())
    model = opened.load(torch.float32)
    found = model.state_dict()
    assert set(origins) <= set(found) and len(origins) > 0
    for key, tensor in found.items():
        value = origins[key].take(held[origins[key].tensor]) if key in origins else held[key]
        assert tensor.dtype == value.dtype and torch.equal(tensor, value), key
    assert (logits(model) - expected).norm() <= 1e-6 * expected.norm()


def test_an_arrangement_that_is_told_by_its_shape(tmp_path):
    """Of experts in one tensor, transposed in older files: the shape decides, though here nobody holds that tensor."""
    directory = tmp_path / "m"
    whole = model_of(Row("qwen3_vl_moe", "wrapper"))
    whole.save_pretrained(directory)
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    wanted = whole.get_parameter(name)[2, :64]
    for transposed in (False, True):
        if transposed:
            changed(directory, lambda weights: weights.update({name: weights[name].mT.contiguous()}))
        opened = open_pretrained(str(directory))
        opened.materialize(name.replace("gate_up_proj", "2"), torch.float32)
        found = opened.model.get_parameter(name.replace("gate_up_proj", "2.gate_proj.weight"))
        assert torch.equal(found, wanted)


def test_experts_that_do_nothing_are_passed_over(tmp_path):
    """LongCat's gate and up have rows for them in its class, and none in other files."""
    model_of(Row("longcat_flash")).save_pretrained(tmp_path / "m")
    before = open_pretrained(str(tmp_path / "m")).model.state_dict().keys()
    idle = []

    def without_idle(weights):
        idle.extend(name for name in weights if ".experts.4." in name or ".experts.5." in name)
        for name in idle:
            del weights[name]

    changed(tmp_path / "m", without_idle)
    assert len(idle) == 2 * 2 * 2 and not any("down_proj" in name for name in idle)
    assert open_pretrained(str(tmp_path / "m")).model.state_dict().keys() == before
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in before
    assert not any(".experts.4." in name for name in before)


def test_what_transformers_keeps_in_float32_is_kept_so(tmp_path):
    """A router's bias, which tells experts apart by less than bfloat16 does."""
    model, name = model_of(Row("deepseek_v3")), "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = model.get_buffer(name)
    bias.copy_(torch.tensor([5.0, 5.001, 5.002, 5.003]))
    model.save_pretrained(tmp_path / "m")
    opened = open_pretrained(str(tmp_path / "m"))
    opened.load()
    found = opened.model.get_buffer(name)
    assert found.dtype == torch.float32 and torch.equal(found, bias)
    assert opened.model.lm_head.weight.dtype == torch.bfloat16
    stored, tensor = opened.as_in_files(name, found)
    assert stored == name and tensor.dtype == torch.float32
    assert opened.as_in_files("lm_head.weight", torch.ones(2, 2))[1].dtype == torch.bfloat16


@contextmanager
def read_names(opened):
    """The stored names that are read inside the `with`."""
    names, borrow = [], opened._source.borrow

    def spy(name):
        names.append(name)
        return borrow(name)

    opened._source.borrow = spy
    yield names
    del opened._source.borrow


@pytest.mark.parametrize("name", SINGLE)
def test_experts_are_read_one_by_one(name, tmp_path):
    """Of the tensors that are read, no experts' have three dimensions, and each is read once."""
    opened = open_pretrained(saved(name, tmp_path / "m"))
    owner, experts = next(
        (local, module) for local, module in opened.model.named_modules() if getattr(module, "expert_count", 0)
    )
    with read_names(opened) as names:
        opened.materialize(f"{owner}.1", torch.float32)
    linears = len(experts.get_submodule("1")._modules)
    assert len(names) == len(set(names)) == linears
    assert all(len(opened._source.shapes[one]) == 2 for one in names)
    assert sum(not parameter.is_meta for parameter in opened.model.parameters()) == linears
    opened.release(f"{owner}.1")
    with read_names(opened) as names:
        opened.load(torch.float32)
    three = [one for one in names if len(opened._source.shapes[one]) == 3]
    assert not any("expert" in one for one in three), three


def test_of_experts_in_one_tensor_only_a_part_is_kept(tmp_path):
    """Its memory is that of one expert, not of the tensor that it is a slice of."""
    opened = open_pretrained(saved("gpt_oss", tmp_path / "m"))
    with read_names(opened) as names:
        opened.materialize("model.layers.0.mlp.experts.2", torch.float32)
    assert {one.rpartition(".")[2] for one in names} == {
        "gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"
    }  # fmt: skip
    weight = opened.model.get_submodule("model.layers.0.mlp.experts.2.up_proj").weight
    assert weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes


def test_the_names_of_the_modules_are_read_too(tmp_path):
    """A checkpoint of this program holds its experts under the names that they have here."""
    directory = tmp_path / "m"
    model = model_of(Row("mixtral"))
    model.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    turned = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    renamed = {}
    for key, tensor in weights.items():
        if ".experts." in key:
            base, _, leaf = key.removesuffix(".weight").rpartition(".")
            key = f"{base.replace('block_sparse_moe', 'mlp')}.{turned[leaf]}.weight"
        renamed[key] = tensor
    assert renamed.keys() != weights.keys()
    save_file(renamed, directory / "model.safetensors")
    opened = open_pretrained(str(directory)).load(torch.float32)
    assert (logits(opened) - logits(model)).norm() <= 1e-6 * logits(model).norm()


def changed(directory, change) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


EXPERT = "model.layers.0.block_sparse_moe.experts.2.w2.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(EXPERT), "the weights "),
        (lambda w: w.update({EXPERT: w[EXPERT][:-1].clone()}), "experts.2.w2.weight is [63, 128]"),
        (lambda w: w.update({EXPERT.replace(".2.", ".4."): w[EXPERT].clone()}), "experts"),
    ],
)
def test_experts_that_do_not_fit_are_refused_in_one_line(change, words, tmp_path):
    directory = tmp_path / "m"
    model_of(Row("mixtral")).save_pretrained(directory)
    open_pretrained(str(directory))
    changed(directory, change)
    refused(directory, words)
    with pytest.raises(ModelError):
        open_pretrained(str(directory))
