"""What cannot be loaded is not exported either, in any format: refused in the same line, and nothing is written."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.export import export
from checkpoints.quantized import open_quantized
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import CheckpointError
from tests.checkpoints.pieces import byte_level
from tests.quantized import quantized, save_float

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
LINEAR = "model.layers.0.mlp.down_proj"
WRONG = {
    "differ but the configuration ties them": lambda t: t.update({HEAD: t[EMBEDDING].flip(0).contiguous()}),
    f"{NORM} is stored as torch.int32, not as floats": lambda t: t.update({NORM: t[NORM].int()}),
    f"{NORM} is stored as torch.bool, not as floats": lambda t: t.update({NORM: t[NORM] > 0}),
    f"{EMBEDDING} is stored as torch.float8_e4m3fn, not": (
        lambda t: t.update({EMBEDDING: t[EMBEDDING].to(torch.float8_e4m3fn)})
    ),
    f"{NORM} holds a value that is not finite": lambda t: t[NORM].fill_(float("inf")),
    f"holds {LINEAR}.weight, for which the model of its config has no place": (
        lambda t: t.update({f"{LINEAR}.weight": torch.zeros(64, 128)})
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    model = save_float(tmp_path_factory.mktemp("whole") / "float", tie_word_embeddings=True)
    made = quantized(model, model.parent / "made", symmetric=True)
    byte_level().save_pretrained(made)
    return made


@pytest.fixture
def checkpoint(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "checkpoint")


def change(checkpoint: Path, how) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    how(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("format", ["awq", "gptq", "compressed-tensors", "gguf-f16"])
@pytest.mark.parametrize("message", WRONG)
def test_what_is_not_loaded_is_not_exported(checkpoint, tmp_path, format, message):
    change(checkpoint, WRONG[message])
    with pytest.raises(CheckpointError) as loading:
        open_quantized(checkpoint, ReferenceBackend("cpu/torch"))
    with pytest.raises(CheckpointError) as exporting:
        export(checkpoint, tmp_path / "made.gguf", format)
    assert message in str(loading.value) and str(exporting.value) == str(loading.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("format", ["awq", "gptq", "compressed-tensors", "gguf-f16"])
def test_a_tied_head_that_is_stored_too_goes_along(checkpoint, tmp_path, format):
    change(checkpoint, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].float()}))  # the same numbers
    export(checkpoint, tmp_path / "made.gguf", format)
