"""What a checkpoint has one by one is put back as each class of transformers keeps it: the same model again."""

import pytest
import torch

from benchmarks.models.tiny import Row, tiny_model
from benchmarks.models.together import put_together


def one_by_one(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a model's experts, each by itself; by the formulas in the forward of each class."""
    made = {}
    for name, tensor in weights.items():
        base, _, leaf = name.rpartition(".")
        for e in () if "shared" in name else range(4):
            if leaf in ("gate_up_proj", "gate_up_proj_bias"):
                whole = tensor[e].t() if kind in ("gpt_oss", "aria_text", "llama4_text") else tensor[e]
                end, half = "bias" if leaf.endswith("bias") else "weight", len(whole) // 2
                parts = (whole[::2], whole[1::2]) if kind == "gpt_oss" else (whole[:half], whole[half:])
                made |= {f"{base}.{e}.{part}_proj.{end}": parts[i] for i, part in enumerate(("gate", "up"))}
            elif leaf == "down_proj":
                turned = kind in ("gpt_oss", "aria_text", "llama4_text")
                made[f"{base}.{e}.down_proj.weight"] = tensor[e].t() if turned else tensor[e]
            elif leaf == "down_proj_bias":
                made[f"{base}.{e}.down_proj.bias"] = tensor[e]
            elif name.endswith(("mlp.w1", "mlp.v1", "mlp.w2")):
                part = tensor.view(4, -1, tensor.shape[1])[e]
                called = {"w1": "gate", "v1": "up", "w2": "down"}[leaf]
                made[f"{base.removesuffix('.mlp')}.{e}.{called}_proj.weight"] = part.t() if leaf == "w2" else part
            elif name.endswith(("input_linear.weight", "output_linear.weight")) and tensor.ndim == 3:
                made[f"{base}.{e}.weight"] = tensor[e]
    return made


@pytest.mark.parametrize(
    "kind", ["gpt_oss", "aria_text", "llama4_text", "dbrx", "granitemoe", "jetmoe", "inkling_text"]
)
def test_experts_come_back(kind):
    wanted = {name: tensor.clone() for name, tensor in tiny_model(Row(kind)).state_dict().items()}
    tensors = one_by_one(wanted, kind)
    model = tiny_model(Row(kind))
    emptied = {name for name, tensor in model.named_parameters() if "expert" in name or "_linear." in name}
    with torch.no_grad():
        for name in emptied:
            model.get_parameter(name).zero_()
    filled, used = put_together(model, tensors, set())
    assert used == set(tensors) and len(used) > 8 and filled <= set(wanted)
    found = model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in filled)
    assert {name for name in emptied if wanted[name].ndim == 3 and "shared" not in name} <= filled


def test_of_room_for_idle_experts_the_first_rows_are_filled():
    model = tiny_model(Row("longcat_flash"))
    name = "model.layers.0.mlp.experts"
    whole = model.get_submodule(name)
    assert (len(whole.gate_up_proj), len(whole.down_proj)) == (6, 4)
    tensors = {}
    for e in range(4):
        gate, up = (torch.full((64, 64), 10.0 * e + i) for i in range(2))
        tensors |= {f"{name}.{e}.gate_proj.weight": gate, f"{name}.{e}.up_proj.weight": up}
        tensors[f"{name}.{e}.down_proj.weight"] = torch.full((64, 64), 10.0 * e + 2)
    idle = whole.gate_up_proj[4:].clone()
    assert put_together(model, tensors, set())[0] == {f"{name}.gate_up_proj", f"{name}.down_proj"}
    assert whole.gate_up_proj[:4, 0, 0].tolist() == [0, 10, 20, 30] and torch.equal(whole.gate_up_proj[4:], idle)
    assert whole.gate_up_proj[:4, -1, 0].tolist() == [1, 11, 21, 31]
    assert whole.down_proj[:, 0, 0].tolist() == [2, 12, 22, 32]


def test_only_what_was_quantized_is_turned():
    model = tiny_model(Row("gpt2"))
    name = "transformer.h.0.attn.c_proj.weight"
    weight = model.get_parameter(name).detach().clone()
    tensors = {name: weight.t()}
    assert put_together(model, tensors, set()) == (set(), set())
    assert put_together(model, tensors, {name}) == ({name}, {name}) and torch.equal(model.get_parameter(name), weight)


def test_another_shape_is_none():
    model = tiny_model(Row("jetmoe"))
    name = "model.layers.0.mlp.input_linear"
    with pytest.raises(ValueError, match=r"input_linear.weight is \(4, 2, 3\) and not"):
        put_together(model, {f"{name}.{e}.weight": torch.zeros(2, 3) for e in range(4)}, set())
