"""A checkpoint in another program's format: the same codes and scales, read back, and read by those programs' rules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.export import export
from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import CheckpointError, OptionError
from qlinear.replace import quantized_layers
from tests.quantized import quantized, save_float
from tests.tiny import tiny_tokens

BACKEND = ReferenceBackend("cpu/torch")
LAYER = "model.layers.1.mlp.down_proj"


@torch.no_grad()
def logits(directory: Path) -> torch.Tensor:
    return open_quantized(directory, BACKEND).module(tiny_tokens()).logits.float()


def section(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())["quantization_config"]


def weight_of(tensors: dict, name: str, group_size: int, less: int, order: tuple) -> torch.Tensor:
    """`(N, K)` float64 by the formats' definition, a field at a time; less: what is subtracted from stored zeros."""
    words, zeros = (tensors[f"{name}.{part}"].to(torch.int64) & 0xFFFFFFFF for part in ("qweight", "qzeros"))
    scales = tensors[f"{name}.scales"].double()
    k, n = len(scales) * group_size, scales.shape[1]
    weight = torch.empty(n, k, dtype=torch.float64)
    for column in range(n):
        word, field = divmod(column, 8)
        stored = (zeros[:, word] >> 4 * order.index(field) & 15) + less
        for row in range(k):
            if order == tuple(range(8)):  # gptq packs codes down the columns
                code = words[row // 8, column] >> 4 * (row % 8) & 15
            else:
                code = words[row, word] >> 4 * order.index(field) & 15
            group = row // group_size
            weight[column, row] = (code - stored[group]) * scales[group, column]
    return weight


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_float(tmp_path_factory.mktemp("export") / "float", "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def four(model, tmp_path_factory) -> Path:
    return quantized(model, tmp_path_factory.mktemp("export") / "w4")


@pytest.fixture(scope="module")
def three(model, tmp_path_factory) -> Path:
    return quantized(model, tmp_path_factory.mktemp("export") / "w3", w_bit=3)


@pytest.mark.parametrize(
    ("format", "order"), [("awq", (0, 2, 4, 6, 1, 3, 5, 7)), ("gptq", tuple(range(8)))], ids=["awq", "gptq"]
)
def test_the_weights_are_those_of_the_checkpoint(four, tmp_path, format, order):
    made = export(four, tmp_path / "made", format)
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    less = 1 if section(tmp_path / "made").get("checkpoint_format") == "gptq" else 0
    weight = weight_of(tensors, LAYER, 32, less, order)
    ours = quantized_layers(open_quantized(four, BACKEND).module)[LAYER].prepared.weight
    assert torch.equal(weight, ours.dequantize().double())
    assert tensors[f"{LAYER}.scales"].dtype == tensors["model.norm.weight"].dtype == torch.float16
    assert tensors["model.layers.0.self_attn.q_proj.bias"].dtype == torch.float16
    assert (made.w_bit, made.group_size, made.kept) == (4, 32, []) and made.scales.largest == 0
    assert torch.equal(logits(tmp_path / "made"), logits(four))


@pytest.mark.parametrize("format", ["awq", "gptq", "compressed-tensors"])
def test_there_and_back_is_the_same_checkpoint(four, tmp_path, format):
    export(four, tmp_path / "there", format)
    export(tmp_path / "there", tmp_path / "back", "compressed-tensors")
    before, after = (load_file(folder / "model.safetensors") for folder in (four, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name].to(tensor.dtype), tensor), name
    assert section(tmp_path / "back")["config_groups"] == section(four)["config_groups"]


def test_what_says_how_the_weights_lie(four, tmp_path):
    export(four, tmp_path / "a", "awq")
    assert section(tmp_path / "a") == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16" and config["tie_word_embeddings"] is True
    assert (tmp_path / "a" / "tokenizer.json").is_file()
    export(four, tmp_path / "g", "gptq")
    said = section(tmp_path / "g")
    assert said["checkpoint_format"] == "gptq_v2"
    assert (said["bits"], said["group_size"], said["sym"], said["desc_act"]) == (4, 32, False, False)


def test_a_symmetric_checkpoint_is_symmetric_gptq_of_the_first_version(model, tmp_path):
    source = quantized(model, tmp_path / "w4", symmetric=True)
    export(source, tmp_path / "made", "gptq")
    assert section(tmp_path / "made")["sym"] is True and section(tmp_path / "made")["checkpoint_format"] == "gptq"
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    assert (tensors[f"{LAYER}.qzeros"] == 0x77777777).all()
    assert tensors[f"{LAYER}.g_idx"].tolist() == [index // 32 for index in range(128)]
    assert torch.equal(logits(tmp_path / "made"), logits(source))
    back = export(tmp_path / "made", tmp_path / "back", "compressed-tensors")
    assert back.symmetric and not any(
        "zero_point" in name for name in load_file(tmp_path / "back" / "model.safetensors")
    )


def test_three_bits(three, tmp_path):
    with pytest.raises(
        OptionError, match="^`format=awq` has 4 bits only, and this checkpoint has 3; the formats"
    ) as error:
        export(three, tmp_path / "a", "awq")
    assert "\n" not in str(error.value) and not (tmp_path / "a").exists()
    export(three, tmp_path / "g", "gptq")
    assert section(tmp_path / "g")["bits"] == 3
    assert torch.equal(logits(tmp_path / "g"), logits(three))


def test_a_head_in_smaller_groups(model, tmp_path):
    """compressed-tensors: all in the head's groups, with scales repeated; formats that know no such head: floats."""
    source = quantized(model, tmp_path / "w4", lm_head=True, lm_head_group_size=32, group_size=64)
    made = export(source, tmp_path / "c", "compressed-tensors")
    sizes = {group["weights"]["group_size"] for group in section(tmp_path / "c")["config_groups"].values()}
    assert made.group_size == 32 and sizes == {32} and torch.equal(logits(tmp_path / "c"), logits(source))
    made = export(source, tmp_path / "a", "awq")
    assert made.kept == ["lm_head"] and made.group_size == 64
    assert section(tmp_path / "a")["modules_to_not_convert"] == ["lm_head"]
    head = quantized_layers(open_quantized(source, BACKEND).module)["lm_head"].prepared.weight.dequantize()
    stored = load_file(tmp_path / "a" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(stored, head.half()) and made.floats.rms < 2**-11
    torch.testing.assert_close(logits(tmp_path / "a"), logits(source), rtol=0.03, atol=0.03)


def test_experts_go_along_one_by_one(tmp_path):
    model = save_float(tmp_path / "moe", "qwen3_moe")
    source = quantized(model, tmp_path / "w4")
    export(source, tmp_path / "a", "awq")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    assert tensors["model.layers.0.mlp.experts.7.gate_proj.qweight"].shape == (64, 4)
    assert torch.equal(logits(tmp_path / "a"), logits(source))


def test_scales_beyond_float16(four, tmp_path):
    """Small ones lose bits, and it is said how much; large ones are refused."""
    edited = tmp_path / "edited"
    edited.mkdir()
    for file in four.iterdir():
        (edited / file.name).write_bytes(file.read_bytes())
    tensors = load_file(edited / "model.safetensors")
    scale = tensors[f"{LAYER}.weight_scale"]
    scale[0, 0] = small = 2.0**-20 + 2.0**-27  # 8 bits, of which float16's smallest numbers hold 5
    save_file(tensors, edited / "model.safetensors", metadata={"format": "pt"})
    made = export(edited, tmp_path / "a", "awq")
    change = abs(float(torch.tensor(small).half()) - small) / small
    assert made.scales.largest == pytest.approx(change) and 0 < made.scales.mean < made.scales.largest
    scale[0, 0] = 2.0**17
    save_file(tensors, edited / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match="down_proj: a scale holds 1.31e[+]05, more than the 6.55e[+]04 of torch.float16"
    ):
        export(edited, tmp_path / "b", "awq")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "edited"]


def test_a_place_that_is_taken_and_a_format_that_is_none(four, tmp_path):
    export(four, tmp_path / "a", "awq")
    with pytest.raises(CheckpointError, match="exists already; give `overwrite`"):
        export(four, tmp_path / "a", "gptq")
    export(four, tmp_path / "a", "gptq", overwrite=True)
    assert section(tmp_path / "a")["quant_method"] == "gptq"
    with pytest.raises(
        OptionError, match="^`format=exl2` is not one of compressed-tensors, awq, gptq, gguf, gguf-f16, gguf-bf16$"
    ):
        export(four, tmp_path / "b", "exl2")


def test_a_tensor_that_the_model_has_no_place_for(four, tmp_path):
    """AutoAWQ puts scales into some models' activations: a model without them would compute something else."""
    export(four, tmp_path / "a", "awq")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["model.layers.0.mlp.act_fn.scales"] = torch.ones(128)
    save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds model.layers.0.mlp.act_fn.scales, for which .* has no place"):
        open_quantized(tmp_path / "a", BACKEND)
