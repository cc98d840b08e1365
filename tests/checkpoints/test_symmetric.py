"""Symmetric checkpoints and the compressed-tensors library: each reads exactly what the other has written."""

import random
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from checkpoints.formats.compressed_tensors import Scheme, check_linear, linear_tensors, read_linear, read_section
from qlinear.errors import CheckpointError
from qlinear.grid import Grid, GridWeight
from qlinear.sizes import BITS, GROUP_SIZES
from qlinear.solvers.rtn import rtn
from tests.checkpoints.test_compressed_tensors import model_with, stored

library = pytest.importorskip("compressed_tensors.quantization")
compressor = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base").PackedQuantizationCompressor
qparams = pytest.importorskip("compressed_tensors.quantization.utils.helpers").calculate_qparams

SIZES = random.Random(5)
# (rows, groups, group size): a row alone, odd ones, more than fill words.
SHAPES = [(1, 1, 32), *((SIZES.randint(2, 80), SIZES.randint(1, 5), SIZES.choice(GROUP_SIZES)) for _ in range(6))]


def scheme(bits: int, group_size: int):
    weights = library.QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=group_size)
    return library.QuantizationScheme(targets=["Linear"], weights=weights)


def random_weight(rows: int, columns: int) -> torch.Tensor:
    """Skewed, so that its zero points would not be in the middle by themselves."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns)) + 0.5


def reckoned(made: GridWeight) -> torch.Tensor:
    """`(N, K)` float64 of the codes around the middle, by hand."""
    signed = made.codes.double() - 2 ** (made.bits - 1)
    return signed * made.scales.double().repeat_interleave(made.group_size, 1)


@pytest.mark.parametrize(("rows", "groups", "group_size"), SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_the_library_decompresses_what_is_written(bits, rows, groups, group_size):
    made = rtn(random_weight(rows, groups * group_size), Grid(bits, group_size, symmetric=True))
    tensors = linear_tensors(made, None, symmetric=True)
    asked = scheme(bits, group_size)
    assert set(tensors) == set(compressor.compression_param_names(asked))
    tensors["weight_scale"] = tensors["weight_scale"].float()  # its products are of the scales' type
    assert torch.equal(compressor.decompress(tensors, asked)["weight"].double(), reckoned(made))
    assert torch.equal(made.dequantize().double(), reckoned(made))


def written_by_the_library(weight: torch.Tensor, bits: int, group_size: int) -> dict[str, torch.Tensor]:
    asked = scheme(bits, group_size)
    grouped = weight.view(len(weight), -1, group_size)
    scales, zeros = qparams(grouped.amin(-1), grouped.amax(-1), asked.weights)
    given = {"weight": weight, "weight_scale": scales.bfloat16(), "weight_zero_point": zeros}
    return compressor.compress(given, asked)


def read_back(tensors: dict[str, torch.Tensor], bits: int, group_size: int, folder: Path) -> GridWeight:
    section = library.QuantizationConfig(
        config_groups={"all": scheme(bits, group_size)}, format="pack-quantized", quantization_status="compressed"
    )
    found = read_section(section.model_dump(mode="json"), folder)
    assert found.schemes == (Scheme(bits, group_size, True),)
    source = stored(tensors, folder / "m.safetensors")
    rows, columns = tensors["weight_shape"].tolist()
    linear = check_linear(model_with(columns, bias=False, rows=rows), "part.linear", source.shapes, found)
    with ExitStack() as lent:
        return read_linear("part.linear", linear, source, lent, found).weight.unpack()


@pytest.mark.parametrize(("rows", "groups", "group_size"), SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_what_the_library_compresses_is_read(tmp_path, bits, rows, groups, group_size):
    """And it is what rounding to nearest makes here, code for code: the convention is the same."""
    weight = random_weight(rows, groups * group_size)
    tensors = written_by_the_library(weight, bits, group_size)
    assert "weight_zero_point" not in tensors
    read = read_back(tensors, bits, group_size, tmp_path)
    tensors["weight_scale"] = tensors["weight_scale"].float()
    expected = compressor.decompress(tensors, scheme(bits, group_size))["weight"].double()
    assert torch.equal(read.dequantize().double(), expected) and torch.equal(reckoned(read), expected)
    own = rtn(weight, Grid(bits, group_size, symmetric=True))
    assert torch.equal(own.scales, read.scales) and torch.equal(own.codes, read.codes)


def test_symmetric_is_what_nothing_said_means(tmp_path):
    """In the library and here."""
    weights = scheme(4, 32).weights.model_dump(mode="json")
    assert library.QuantizationArgs().symmetric is True
    del weights["symmetric"]
    section = {"format": "pack-quantized", "config_groups": {"all": {"weights": weights}}}
    assert read_section(section, tmp_path).schemes == (Scheme(4, 32, True),)


def test_a_zero_point_that_a_symmetric_checkpoint_should_not_have(tmp_path):
    tensors = written_by_the_library(random_weight(8, 64), 4, 32)
    tensors["weight_zero_point"] = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(
        CheckpointError, match=r"^part.linear.weight_zero_point is \(1, 2\) on disk, None by the config"
    ):
        read_back(tensors, 4, 32, tmp_path)
