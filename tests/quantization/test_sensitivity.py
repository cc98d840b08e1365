"""What each grid costs a layer, against whole models in float64, and checkpoints whose layers differ."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from awq_cli.finding import find_checkpoint
from checkpoints.formats.compressed_tensors import grid_weight, weight_parts
from checkpoints.pretrained import open_pretrained
from qlinear.errors import CheckpointError, OptionError
from qlinear.grid import Grid
from qlinear.progress import silent
from qlinear.solvers.rtn import rtn
from quantization import sensitivity
from quantization.forecast import forecast
from quantization.plan import examine_job, make_job
from quantization.sensitivity import SAMPLES, measure
from quantization.texts.samples import read_text, token_blocks
from run_awq import Recipe, load, quantize
from tests.quantized import quantized, recipe, save_float

BITS = 4.0


def asked(model, **changes) -> Recipe:
    return recipe(model, **dict(group_size=None, bits_per_weight=BITS) | changes)


def measured(model, **changes):
    source = open_pretrained(str(model))
    job = examine_job(make_job(source, asked(model, **changes).settled(), silent))
    return source, measure(job)


def drawn_tokens(model, tokens: torch.Tensor, seed: int) -> torch.Tensor:
    """The next tokens that the float model is asked for, drawn sample by sample."""
    generator = torch.Generator().manual_seed(seed)
    chances = [model(input_ids=sample[None]).logits[0].float().softmax(-1) for sample in tokens]
    return torch.stack([each.multinomial(1, generator=generator)[:, 0] for each in chances])


@pytest.mark.parametrize("lm_head", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2", "mixtral"])
def test_costs_in_float64(tmp_path, monkeypatch, model_type, lm_head):
    """sum(g^2 d^2) / 2, with gradients through the whole model at once."""
    monkeypatch.setattr(sensitivity, "product_dtype", lambda: torch.float32)
    path = save_float(tmp_path / "m", model_type)
    source, shares = measured(path, lm_head=lm_head)
    options = asked(path)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens, _ = token_blocks(source.tokenizer, read_text(options.calib_data), recipe(path, n_samples=SAMPLES))
    with torch.no_grad():
        labels = drawn_tokens(whole, tokens, options.seed)
    whole = source.load().double() if model_type == "mixtral" else whole.double()  # its experts, taken apart
    whole.requires_grad_(True)
    names = [name for share in shares for name in share.linears]
    seen = {name: [] for name in names}

    def listen(name):
        def hook(_, args, output):
            output.register_hook(lambda gradient: seen[name].append((args[0].detach(), gradient)))

        return hook

    for name in names:
        whole.get_submodule(name).register_forward_hook(listen(name))
    for sample, label in zip(tokens, labels, strict=True):
        logits = whole(input_ids=sample[None], use_cache=False).logits[0]
        logits.log_softmax(-1).gather(1, label[:, None]).sum().backward()
    assert ("lm_head" in names) == lm_head and len(names) == len(set(names))
    for share in shares:
        for grid, cost in share.costs.items():
            expected = 0.0
            for name in share.linears:
                weight = whole.get_submodule(name).weight.data
                error = rtn(weight.float(), grid).dequantize().double() - weight
                expected += sum(float((x @ error.t() * g).square().sum()) for x, g in seen[name]) / 2
            assert cost == pytest.approx(expected, rel=0.03, abs=1e-12), (share.linears, grid)


def test_which_are_chosen_together(tmp_path):
    """Those that read the same, and all experts of a layer, whether anything was given to them or not."""
    _, shares = measured(save_float(tmp_path / "m", "mixtral"))
    sets = [{name.split(".", 3)[3] for name in share.linears} for share in shares if ".layers.0." in share.linears[0]]
    assert {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} in sets and {"self_attn.o_proj"} in sets
    experts = sorted((sorted(names) for names in sets if any("experts" in name for name in names)), key=len)
    assert len(experts) == 2 and len(experts[1]) == 2 * len(experts[0])
    assert {name.rpartition(".")[2] for name in experts[0]} != {name.rpartition(".")[2] for name in experts[1]}


def test_the_grids_that_are_offered(tmp_path):
    path = save_float(tmp_path / "m")
    _, shares = measured(path)
    widths = {name: linear for share in shares for name in share.linears for linear in [share]}
    assert widths and all(grid.group_size in (32, 64, 128, 256) for share in shares for grid in share.costs)
    assert all({grid.bits for grid in share.costs} == {3, 4} for share in shares)
    _, shares = measured(path, group_size=32, symmetric=True)
    assert all(set(share.costs) == {Grid(3, 32, True), Grid(4, 32, True)} for share in shares)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"awq": "run", "solver": "gptq", "lm_head": True}),
        ("llama", {"awq": "run", "solver": "rtn", "symmetric": True}),
        ("phi3", {"solver": "gptq", "distill": 2}),
        ("mixtral", {"awq": "run", "solver": "gptq"}),
    ],
)
def test_a_checkpoint_of_layers_that_differ(tmp_path, model_type, changes):
    """Its bits are those asked for, its files say which layer has which, and it runs as they say."""
    path = save_float(tmp_path / "m", model_type)
    scales = {"scales": str(tmp_path / "scales.pt")} if changes.get("awq") == "run" else {}
    result = quantize(str(path), str(tmp_path / "q"), asked(path, **changes, **scales))
    assert result.w_bit is None and result.group_size is None and result.bits_per_weight == BITS
    assert len({grid.w_bit for grid in result.grids}) == 2, "layers differ"
    assert sum(grid.linears for grid in result.grids) == len(result.layers)

    section = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    said = {
        name: (group["weights"]["num_bits"], group["weights"]["group_size"])
        for group in section["config_groups"].values()
        for name in group["targets"]
    }
    source = open_pretrained(str(path))
    assert said == {source.linear_in_files(layer.name): (layer.w_bit, layer.group_size) for layer in result.layers}
    tensors, weights, spent = load_file(tmp_path / "q" / "model.safetensors"), 0, 0.0
    for name, (bits, group_size) in said.items():
        n, k = tensors[f"{name}.weight_shape"].tolist()
        assert tensors[f"{name}.weight_packed"].shape == (n, -(-k * bits // 32))
        assert tensors[f"{name}.weight_scale"].shape == (n, k // group_size)
        weights, spent = weights + n * k, spent + n * k * (bits + (16 + bits * (not result.symmetric)) / group_size)
    assert BITS - 0.3 < spent / weights <= BITS

    fused, modules = load(tmp_path / "q"), load(tmp_path / "q", flash_attention=False)
    text = " ".join(f"w{number}" for number in range(3, 40))
    ours, theirs = (model.perplexity(text, window=16) for model in (fused, modules))
    assert ours == pytest.approx(theirs, rel=0.03)


def test_scales_of_another_budget_are_not_taken(tmp_path):
    path, scales = save_float(tmp_path / "m"), str(tmp_path / "found.pt")
    quantized(path, tmp_path / "a", awq="run", bits_per_weight=3.9, group_size=None, scales=scales)
    for changes in ({"bits_per_weight": 3.6, "group_size": None}, {"w_bit": 4}):
        with pytest.raises(Exception, match="made for 3.9 bits a weight, not for (3.6 bits a weight|one grid for all)"):
            quantized(path, tmp_path / "b", awq="load", scales=scales, **changes)


def test_found_again_by_the_same_options(tmp_path, monkeypatch, capsys):
    """And what a dry run tells of it."""
    path = save_float(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    found = forecast(str(path), asked(path), None, 2, False, silent)
    assert found.w_bit is None and found.group_size is None and found.parts["measuring"] > 0
    assert {layer.bits for layer in found.layers if layer.reason is None} == {BITS}
    assert found.shards == [] and [fault.reason for fault in found.misfits] == ["vLLM reads 4 bits here, not 3"]
    quantize(str(path), None, asked(path))
    assert find_checkpoint(str(path), asked(path), False).name == "m-w4-gmixed-rtn"
    with pytest.raises(CheckpointError, match=r"--bits_per_weight 3.5 --awq none"):
        find_checkpoint(str(path), asked(path, bits_per_weight=3.5), False)


@pytest.mark.parametrize("bits", [3, 4.7, "4", True, float("nan")])
def test_what_is_no_number_of_bits(bits):
    with pytest.raises(OptionError, match=r"^`bits_per_weight=.*` has to be a number from 3\.074 to 4\.625$"):
        Recipe(bits_per_weight=bits)
    with pytest.raises(OptionError, match=r" has to be a number from 3\.250 to 4\.250$"):
        Recipe(bits_per_weight=4.3, group_size=64, symmetric=True)


def test_fewer_than_there_can_be(tmp_path):
    path = save_float(tmp_path / "m")
    with pytest.raises(OptionError, match=r"^`bits_per_weight=3.1` has to be 3\.\d+ at least"):
        quantized(path, tmp_path / "q", bits_per_weight=3.1, group_size=None)
    assert not (tmp_path / "q").exists()


def test_transformers_opens_symmetric_layers_that_differ_and_refuses_others(tmp_path):
    """Told to dequantize, it would take every layer to be of the first one's bits, without a word."""
    path = save_float(tmp_path / "m")
    for symmetric in (True, False):
        quantized(path, tmp_path / "q", overwrite=True, bits_per_weight=BITS, group_size=None, symmetric=symmetric)
        recorded = json.loads((tmp_path / "q" / "awq_recipe.json").read_text())["layers"]
        assert {layer["w_bit"] for layer in recorded} == {3, 4}
        if not symmetric:
            with pytest.raises(Exception, match="mismatched"):
                AutoModelForCausalLM.from_pretrained(tmp_path / "q")
            return
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64))  # it unpacks them then
        tensors = load_file(tmp_path / "q" / "model.safetensors")
        for layer in recorded:
            parts = {part: tensors[f"{layer['name']}.{part}"] for part in weight_parts(symmetric)}
            expected = grid_weight(parts, layer["w_bit"]).dequantize(torch.bfloat16)
            assert torch.equal(model.get_submodule(layer["name"]).weight, expected), layer["name"]
