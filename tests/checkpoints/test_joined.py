"""How a checkpoint's layers are read: joined where they see one input, one mapped at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.replace import quantized_layers
from tests.checkpoints.test_quantized import BACKEND, MODELS, decoded_weights, logits
from tests.quantized import quantized, save_float


@pytest.mark.parametrize("flash_attention", [None, True, False])
@pytest.mark.parametrize(("model_type", "overrides"), MODELS)
def test_joined_layers_give_the_same_logits(tmp_path, model_type, overrides, flash_attention):
    source = save_float(tmp_path / "float", model_type, **overrides)
    directory = quantized(source, tmp_path / "q", flash_attention=True)
    found = open_quantized(directory, BACKEND, flash_attention)
    assert found.flash_attention == (flash_attention is not False)
    apart = logits(open_quantized(directory, BACKEND, False).module)
    assert (logits(found.module) - apart).abs().max() <= 2**-6 * apart.abs().max()


def is_mapped(file: Path) -> int:
    """How many parts of a file this process has mapped."""
    return sum(line.rstrip().endswith(str(file)) for line in Path("/proc/self/maps").read_text().splitlines())


class Watching(ReferenceBackend):
    """Counts what is mapped of a file whenever it is handed a weight."""

    def __init__(self, file: Path):
        super().__init__("cpu/torch")
        self.file, self.counts = file, []

    def prepare(self, weight, bias):
        self.counts.append(is_mapped(self.file))
        return super().prepare(weight, bias)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
@pytest.mark.parametrize(("flash", "layers", "most"), [(False, 14, 4), (True, 8, 12)])
def test_no_more_is_mapped_than_the_layer_at_hand(tmp_path, flash, layers, most):
    """most: words, zeros, scales and bias of q, k and v."""
    directory = quantized(save_float(tmp_path / "float", attention_bias=True, mlp_bias=True), tmp_path / "q")
    backend = Watching((directory / "model.safetensors").resolve())
    loaded = open_quantized(directory, backend, flash)
    # the kernel may merge neighbours
    assert len(backend.counts) == layers and 1 <= min(backend.counts) <= max(backend.counts) <= most
    assert is_mapped(backend.file) == 0
    before = logits(loaded.module)
    with backend.file.open("r+b") as file:
        file.write(bytes(backend.file.stat().st_size))
    assert torch.equal(logits(loaded.module), before)


@pytest.mark.parametrize("flash", [False, True])
def test_a_group_with_a_member_left_in_float(tmp_path, flash):
    directory = quantized(save_float(tmp_path / "float"), tmp_path / "q")
    kept, file = "model.layers.1.self_attn.k_proj", directory / "model.safetensors"
    tensors, weights = load_file(file), decoded_weights(directory)
    before = logits(open_quantized(directory, BACKEND, False).module)
    parts = [name for name in tensors if name.startswith(f"{kept}.")]
    for name in parts:
        del tensors[name]
    save_file(tensors | {f"{kept}.weight": weights[f"{kept}.weight"].bfloat16()}, file)
    model = open_quantized(directory, BACKEND, flash).module
    assert isinstance(model.get_submodule(kept), torch.nn.Linear)
    # joined: q, k, v of block 0, gate and up of both; apart: q and v of block 1, o and down of both
    assert len(parts) == 4 and len(quantized_layers(model)) == (1 + 2 + 2 + 4 if flash else 13)
    assert (logits(model) - before).abs().max() <= 2**-5 * before.abs().max()


def test_how_many_layers_are_joined(tmp_path):
    directory = quantized(save_float(tmp_path / "float"), tmp_path / "q")
    apart, joined = (quantized_layers(open_quantized(directory, BACKEND, flash).module) for flash in (False, True))
    assert len(apart) == 2 * 7 and len(joined) == 2 * 4
