"""Linears as llm-compressor stores them, made by its own compressor: every scheme that the grid here holds."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from checkpoints.formats.readers import open_layout
from qlinear.errors import CheckpointError
from tests.checkpoints.test_compressed_tensors import model_with, stored

library = pytest.importorskip("compressed_tensors.quantization")
compressor = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base").PackedQuantizationCompressor
qparams = pytest.importorskip("compressed_tensors.quantization.utils.helpers").calculate_qparams

N = 40


def scheme(bits: int, group_size: int | None, symmetric: bool, **more):
    strategy = "channel" if group_size is None else "group"
    weights = library.QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size, **more
    )
    return library.QuantizationScheme(targets=["Linear"], weights=weights)


def compressed(asked, k: int, dtype: torch.dtype) -> tuple[dict, torch.Tensor]:
    """What the library stores of a random weight, and the float64 weight that it takes it for."""
    weight = torch.randn(N, k, generator=torch.Generator().manual_seed(k)) + 0.3
    groups = weight.view(N, -1, asked.weights.group_size or k)
    scales, zeros = qparams(groups.amin(-1), groups.amax(-1), asked.weights)
    given = {"weight": weight, "weight_scale": scales.to(dtype), "weight_zero_point": zeros}
    tensors = {name: tensor.contiguous() for name, tensor in compressor.compress(given, asked).items()}
    wide = {name: tensor.clone() for name, tensor in tensors.items()}
    wide["weight_scale"] = wide["weight_scale"].to(torch.bfloat16).float()  # as the kernels here hold them
    return tensors, compressor.decompress(wide, asked)["weight"].double()


def section(*schemes) -> dict:
    groups = {f"group_{index}": asked for index, asked in enumerate(schemes)}
    made = library.QuantizationConfig(config_groups=groups, format="pack-quantized", quantization_status="compressed")
    return made.model_dump(mode="json")


def read(tensors: dict, said: dict, k: int, folder: Path) -> torch.Tensor:
    source = stored(tensors, folder / "m.safetensors")
    layout = open_layout(said, folder)
    found = layout.check(model_with(k, False, N), "part.linear", source.shapes)
    with ExitStack() as lent:
        return layout.read("part.linear", found, source, lent).weight.unpack()


SIZES = [
    (32, 96, 32),
    (64, 192, 64),
    (128, 256, 128),
    (256, 512, 256),
    (512, 1024, 256),
    (96, 192, 32),
    (None, 320, 64),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bits", [3, 4])
def test_what_the_library_compresses_is_read(tmp_path, bits, sizes, symmetric, dtype):
    group_size, k, runs_in = sizes
    asked = scheme(bits, group_size, symmetric)
    tensors, expected = compressed(asked, k, dtype)
    found = read(tensors, section(asked), k, tmp_path)
    assert found.group_size == runs_in and torch.equal(found.dequantize().double(), expected)


def test_schemes_mixed_from_layer_to_layer(tmp_path):
    """Four bits and three, symmetric and not, groups and rows, in one config: the shapes tell which is which."""
    asked = [scheme(4, 128, True), scheme(3, 64, False), scheme(4, 64, False), scheme(3, None, True)]
    for each in asked:
        tensors, expected = compressed(each, 256, torch.bfloat16)
        assert torch.equal(read(tensors, section(*asked), 256, tmp_path).dequantize().double(), expected)


def test_inputs_sorted_by_activation(tmp_path):
    """`actorder: weight` keeps neighbours together; `group` stores where each input went, and may have moved none."""
    for order in ("weight", "static"):
        asked = scheme(4, 64, False, actorder=order)
        tensors, expected = compressed(asked, 128, torch.bfloat16)
        assert torch.equal(read(tensors, section(asked), 128, tmp_path).dequantize().double(), expected)
    asked = scheme(4, 64, False, actorder="group")
    groups = torch.arange(128, dtype=torch.int32) // 64
    found = read(tensors | {"weight_g_idx": groups}, section(asked), 128, tmp_path)
    assert torch.equal(found.dequantize().double(), expected)
    moved = {"weight_g_idx": groups.flip(0).contiguous()}
    with pytest.raises(CheckpointError, match="^part.linear.weight_g_idx permutes channels between groups"):
        read(tensors | moved, section(asked), 128, tmp_path)
    with pytest.raises(CheckpointError, match=r"weight_g_idx is \(3,\) on disk, \(128,\) by"):
        read(tensors | {"weight_g_idx": torch.arange(3)}, section(asked), 128, tmp_path)
    with pytest.raises(CheckpointError, match=r"weight_g_idx is None on disk, \(128,\) by"):
        read(tensors, section(asked), 128, tmp_path)


def test_zero_points_that_are_no_packed_integers(tmp_path):
    asked = scheme(4, 64, False)
    tensors, _ = compressed(asked, 128, torch.bfloat16)
    shape = tensors["weight_zero_point"].shape
    with pytest.raises(CheckpointError, match="weight_zero_point: packed weights have to be int32, not torch.bfloat16"):
        read(tensors | {"weight_zero_point": torch.zeros(shape, dtype=torch.bfloat16)}, section(asked), 128, tmp_path)


def test_a_group_that_the_kernels_cannot_cut(tmp_path):
    asked = scheme(4, 48, True)
    tensors, _ = compressed(asked, 96, torch.bfloat16)
    with pytest.raises(CheckpointError, match="says group size 48; it has to be a multiple of 32"):
        read(tensors, section(asked), 96, tmp_path)
    asked = scheme(4, None, True)
    tensors, _ = compressed(asked, 80, torch.bfloat16)
    with pytest.raises(CheckpointError, match="is in groups of 80; what runs here are multiples of 32"):
        read(tensors, section(asked), 80, tmp_path)
