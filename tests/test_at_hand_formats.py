"""Checkpoints in the formats of other programs opened without torch: bit for bit what the long way makes of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.stored_linears import AwqLinears, GptqLinears, Rounded, Tensors
from engine.at_hand import StackRunner
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from qlinear.backends.stack import Unsupported
from run_awq import export, load
from tests.checkpoints.test_foreign import packed
from tests.quantized import quantized, save_float
from tests.test_at_hand import NEW, PROMPT, again, change, logits_of, whole

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

FORMATS = [
    ("awq", {}),
    ("gptq", {}),
    ("gptq", dict(symmetric=True)),
    ("gptq", dict(w_bit=3)),
    ("compressed-tensors", {}),
]


def exported(folder: Path, format: str, kind: str = "llama", model: dict | None = None, **recipe) -> Path:
    made = quantized(save_float(folder / "float", kind, **(model or {})), folder / "made", **recipe)
    export(made, folder / "exported", format)
    return folder / "exported"


def with_fine_scales(directory: Path) -> Path:
    """Scales that use all bits of float16, as other programs' do."""
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name] = tensors[name] * torch.linspace(0.8, 1.2, tensors[name].numel()).view_as(tensors[name]).half()
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize(("format", "recipe"), FORMATS)
def test_every_format(format, recipe, tmp_path, monkeypatch):
    directory = exported(tmp_path, format, model=dict(attention_bias=True, mlp_bias=True), **recipe)
    if format != "compressed-tensors":
        with_fine_scales(directory)
    model, long = again(directory), whole(directory, monkeypatch)
    assert isinstance(model.runner, StackRunner)
    assert torch.equal(logits_of(model), logits_of(long))
    how = dict(max_new_tokens=NEW, temperature=0.8, seed=3)
    assert model.generate([PROMPT], **how) == long.generate([PROMPT], **how)
    assert model.about.notes == long.about.notes and bool(model.about.notes) == (format != "compressed-tensors")


def test_what_llm_compressor_says_besides(tmp_path, monkeypatch):
    """Which library wrote it, and an order of columns in which groups are of neighbours."""
    directory = exported(tmp_path, "compressed-tensors")
    section = json.loads((directory / "config.json").read_text())["quantization_config"] | {"version": "0.19.0"}
    for group in section["config_groups"].values():
        group["weights"] |= {"actorder": "static", "observer": "memoryless_minmax"}
    change(directory, "config.json", quantization_config=section)
    model, long = again(directory), whole(directory, monkeypatch)
    assert isinstance(model.runner, StackRunner)
    assert torch.equal(logits_of(model), logits_of(long))


def test_neither_torch_nor_transformers_is_loaded(tmp_path):
    directory = exported(tmp_path, "awq")
    load(directory)
    code = (
        f"import sys, run_awq; model = run_awq.load({str(directory)!r})\n"
        f"model.generate([{PROMPT!r}], max_new_tokens=2)\n"
        "print(sorted({'torch', 'transformers', 'safetensors.torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def tensors_of(file: str) -> tuple[Tensors, torch.Tensor, torch.Tensor]:
    stored, codes, zeros = packed(file)
    arrays = {name: tensor.numpy() for name, tensor in stored.items()}
    return (
        Tensors("part.linear", lambda name: arrays[name.removeprefix("part.linear.")], lambda name: True, Rounded()),
        codes,
        zeros,
    )


def fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes of the rows of int32 words, from the lowest bit up."""
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    values = flat[:, : count * bits].reshape(len(words), count, bits)
    return values @ (1 << np.arange(bits))


PACKED = [
    ("autoawq_gemm", AwqLinears(frozenset({64}))),
    ("gptqmodel_v2_4bit", GptqLinears(4, frozenset({64}), less_one=False, borrows=False)),
    ("gptqmodel_v2_3bit", GptqLinears(3, frozenset({64}), less_one=False, borrows=False)),
    ("gptqmodel_v1_4bit", GptqLinears(4, frozenset({64}), less_one=True, borrows=True)),
]


@pytest.mark.parametrize(("file", "linears"), PACKED)
def test_what_their_own_libraries_packed(file, linears):
    tensors, codes, zeros = tensors_of(file)
    weight = linears.read(tensors)
    assert np.array_equal(fields(weight.words, weight.bits, weight.k), codes.numpy())
    assert np.array_equal(fields(weight.zeros.T, weight.bits, weight.n).T, zeros.numpy())


CHANGED = {
    "another version of awq": ("awq", dict(version="gemv")),
    "no zero points": ("awq", dict(zero_point=False)),
    "groups of another size": ("awq", dict(group_size=64)),
    "another width of words": ("gptq", dict(pack_dtype="int16")),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_is_not_plain_takes_the_long_way(kind, tmp_path):
    """Which knows what is wrong."""
    format, fields = CHANGED[kind]
    directory = exported(tmp_path, format)
    section = json.loads((directory / "config.json").read_text())["quantization_config"]
    change(directory, "config.json", quantization_config=section | fields)
    try:
        assert isinstance(again(directory).runner, ModuleRunner)
    except Exception as error:
        assert type(error).__module__ == "qlinear.errors" and "\n" not in str(error)


def test_zero_points_that_readers_disagree_on_are_left_to_the_long_way():
    """Less one, a zero point of 0 is a 15, which only some programs' subtraction explains."""
    tensors, _, zeros = tensors_of("gptqmodel_v1_4bit")
    assert (zeros == 0).any()
    with pytest.raises(Unsupported, match="qzeros holds 15"):
        GptqLinears(4, frozenset({64}), less_one=True, borrows=False).read(tensors)


def test_inputs_in_shuffled_groups_are_left_to_the_long_way():
    tensors, _, _ = tensors_of("gptqmodel_v2_4bit")
    order = np.repeat(np.arange(2), 64)[::-1].copy()

    def array(name: str) -> np.ndarray:
        return order if name.endswith("g_idx") else tensors.array(name)

    with pytest.raises(Unsupported, match=r"g_idx has groups of inputs that are no neighbours"):
        PACKED[1][1].read(Tensors("part.linear", array, lambda name: True, Rounded()))
