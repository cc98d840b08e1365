"""The compressed-tensors format: what is written is read back, and is what its own library understands."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from checkpoints.formats.compressed_tensors import (
    Scheme,
    check_linear,
    linear_tensors,
    quantization_section,
    read_linear,
    read_section,
)
from checkpoints.formats.readers import open_layout
from checkpoints.formats.stored import check_finite
from checkpoints.sources import SafetensorsShards
from qlinear.errors import CheckpointError
from qlinear.grid import Grid, GridWeight

GROUP_SIZES, N = (32, 64, 128, 256), 37  # odd, and no multiple of what fits a word
KEPT = ["model.layers.0.mlp.router", "lm_head"]
HEADS = [None, ("lm_head", 32), ("model.embed_out", 128)]


def random_grid(bits: int, group_size: int, groups: int = 3, rows: int = N) -> GridWeight:
    generator = torch.Generator().manual_seed(bits * group_size)
    codes = torch.randint(0, 2**bits, (rows, groups * group_size), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8, generator=generator)
    scales = torch.rand(rows, groups, generator=generator).add(0.1).to(torch.bfloat16)
    return GridWeight(codes, zeros, scales, bits)


def model_with(k: int, bias: bool, rows: int = N) -> nn.Module:
    return nn.ModuleDict({"part": nn.ModuleDict({"linear": nn.Linear(k, rows, bias=bias)})})


def stored(tensors: dict[str, torch.Tensor], path: Path) -> SafetensorsShards:
    save_file({f"part.linear.{leaf}": tensor for leaf, tensor in tensors.items()}, path)
    return SafetensorsShards((path,))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [3, 4])
def test_a_linear_that_is_written_is_read_back(tmp_path, bits, group_size, has_bias):
    grid = random_grid(bits, group_size)
    bias = torch.randn(N, generator=torch.Generator().manual_seed(1)) if has_bias else None
    source = stored(linear_tensors(grid, bias, False), tmp_path / "m.safetensors")
    quantization = read_section(quantization_section(Grid(bits, group_size), None, []), tmp_path)
    assert quantization.schemes == (Scheme(bits, group_size, False),)
    layout = open_layout(quantization_section(Grid(bits, group_size), None, []), tmp_path)
    assert layout.quantized_names(source.shapes) == ["part.linear"]
    found = check_linear(model_with(3 * group_size, has_bias), "part.linear", source.shapes, quantization)
    assert (found.shape, found.bits, found.has_bias) == ((N, 3 * group_size), bits, has_bias)
    with ExitStack() as lent:
        read = read_linear("part.linear", found, source, lent, quantization)
        again = read.weight.unpack()
        assert again.bits == bits and again.group_size == group_size
        for part in ("codes", "zeros", "scales"):
            assert torch.equal(getattr(again, part), getattr(grid, part)), part
        assert (read.bias is None) is not has_bias
        assert bias is None or torch.equal(read.bias, bias.to(torch.bfloat16))


def bits_of(words: torch.Tensor) -> list[list[int]]:
    """Every row of int32 words as bits, the lowest first."""
    return [[(word % 2**32 >> place) & 1 for word in row for place in range(32)] for row in words.tolist()]


@pytest.mark.parametrize("bits", [3, 4])
def test_what_lies_on_disk(bits):
    """By the definition: values side by side in little-endian words, codes along a row, zero points down a column."""
    grid = random_grid(bits, 32, groups=2)
    tensors = linear_tensors(grid, torch.zeros(N), False)
    assert list(tensors) == ["weight_packed", "weight_zero_point", "weight_scale", "weight_shape", "bias"]
    assert tensors["weight_shape"].tolist() == [N, 64] and tensors["weight_shape"].dtype == torch.int64
    assert tensors["weight_scale"].dtype == tensors["bias"].dtype == torch.bfloat16
    for packed, values in ((tensors["weight_packed"], grid.codes), (tensors["weight_zero_point"].t(), grid.zeros.t())):
        assert packed.dtype == torch.int32
        for row, expected in zip(bits_of(packed), values.tolist(), strict=True):
            found = [sum(row[bits * i + place] << place for place in range(bits)) for i in range(len(expected))]
            assert found == expected and not any(row[bits * len(expected) :])


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [3, 4])
def test_the_library_unpacks_the_same_weight(bits, group_size):
    library = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    grid = random_grid(bits, group_size)
    tensors = linear_tensors(grid, None, False)
    codes = library.unpack_from_int32(tensors["weight_packed"], bits, (N, 3 * group_size))
    zeros = library.unpack_from_int32(tensors["weight_zero_point"], bits, (N, 3), packed_dim=0)
    grouped = codes.double().view(N, 3, -1) - zeros.double().unsqueeze(-1)
    weight = (grouped * tensors["weight_scale"].double().unsqueeze(-1)).view(N, -1)
    # a product of two numbers of 8 bits and fewer is exact in float32
    assert torch.equal(grid.dequantize().double(), weight)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_section_is_what_the_library_writes(bits, group_size, head, symmetric):
    library = pytest.importorskip("compressed_tensors.quantization")

    def scheme(target: str, size: int):
        weights = library.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=size)
        return library.QuantizationScheme(targets=[target], weights=weights)

    groups = {"group_0": scheme("Linear", group_size)}
    if head is not None:
        groups["group_1"] = scheme(f"re:.*{head[0]}$", head[1])
    config = library.QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=KEPT
    )
    expected = config.model_dump(mode="json", exclude_none=True) | {"dequantize": True}
    for one in expected["config_groups"].values():  # which the library finds out by itself
        assert one["weights"].pop("zp_dtype", None) == (None if symmetric else "torch.int8")
    section = quantization_section(Grid(bits, group_size, symmetric), head, KEPT)
    assert section == expected
    assert library.QuantizationConfig.model_validate({**section, "dequantize": None}).config_groups == groups


@pytest.mark.parametrize("head", HEADS)
def test_a_section_that_is_written_is_read_back(tmp_path, head):
    found = read_section(quantization_section(Grid(3, 64), head, KEPT), tmp_path)
    assert set(found.schemes) == {Scheme(3, 64, False)} | ({Scheme(3, head[1], False)} if head else set())


def test_sections_of_other_programs(tmp_path):
    """What llm-compressor adds is passed over; what would be computed wrongly here is refused."""
    section = quantization_section(Grid(4, 128), None, [])
    weights = section["config_groups"]["group_0"]["weights"]
    weights |= {"actorder": "weight", "block_structure": None, "scale_dtype": None}
    section["config_groups"]["group_0"] |= {"input_activations": None, "output_activations": None}
    section |= {"kv_cache_scheme": None, "sparsity_config": {}, "version": "0.18.0"}
    assert read_section(section, tmp_path).schemes == (Scheme(4, 128, False),)


@pytest.mark.parametrize(("part", "rows"), [("weight_packed", N - 1), ("weight_zero_point", 1), ("weight_scale", 1)])
def test_shapes_that_do_not_fit(tmp_path, part, rows):
    tensors = linear_tensors(random_grid(4, 32), None, False)
    tensors[part] = tensors[part][:rows].contiguous()
    source = stored(tensors, tmp_path / "m.safetensors")
    quantization = read_section(quantization_section(Grid(4, 32), None, []), tmp_path)
    with pytest.raises(CheckpointError, match=rf"^part.linear.{part} is \({rows}, \d+\) on disk, \(\d+, \d+\) by"):
        check_linear(model_with(96, bias=False), "part.linear", source.shapes, quantization)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_value_that_is_not_finite(value):
    tensor = torch.ones(2, 3, dtype=torch.bfloat16)
    check_finite("x", tensor)
    check_finite("codes", torch.ones(2, dtype=torch.int32))
    tensor[1, 2] = value
    with pytest.raises(CheckpointError, match="^x holds a value that is not finite; quantize the model again$"):
        check_finite("x", tensor)
