"""Blocks of GGUF: the weights they stand for, by the reader of the gguf package and by the formula."""

from dataclasses import replace

import gguf
import pytest
import torch

from checkpoints.formats.gguf_blocks import from_blocks, kind_for, to_blocks
from checkpoints.formats.stored import Rounding
from qlinear.errors import CheckpointError
from qlinear.grid import GridWeight


def random_weight(bits: int, group_size: int, symmetric: bool = False, rows: int = 5, columns: int = 256) -> GridWeight:
    generator = torch.Generator().manual_seed(bits * group_size)
    codes = torch.randint(2**bits, (rows, columns), generator=generator).to(torch.uint8)
    zeros = torch.randint(2**bits, (rows, columns // group_size), generator=generator).to(torch.uint8)
    zeros = torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    scales = (torch.rand(zeros.shape, generator=generator) * 0.02 + 1e-3).to(torch.bfloat16)
    return GridWeight(codes, zeros, scales, bits)


def meant(weight: GridWeight, kind: str) -> torch.Tensor:
    """By the formula, in float64: `d * q + m` with both in half precision, or `d * (q - 8)`."""
    spread = weight.codes.shape[1] // weight.scales.shape[1]
    d = weight.scales.half().double().repeat_interleave(spread, 1)
    zeros = weight.zeros.double().repeat_interleave(spread, 1)
    q = weight.codes.double()
    return d * (q - zeros) if kind == "Q4_0" else d * q + (-zeros * d).half().double()


@pytest.mark.parametrize(("bits", "group_size", "symmetric", "kind"), [
    (4, 32, False, "Q4_1"), (4, 64, False, "Q4_1"), (4, 128, True, "Q4_0"), (4, 32, True, "Q4_0"),
    (3, 64, False, "Q4_0"), (3, 256, True, "Q4_0"),
])  # fmt: skip
def test_blocks_stand_for_the_weights(bits, group_size, symmetric, kind):
    weight = random_weight(bits, group_size, symmetric)
    assert kind_for(bits, symmetric) == kind
    blocks = to_blocks(replace(weight, scales=weight.scales.half()), kind, "x")
    assert blocks.shape == (5, 256 // 32 * {"Q4_0": 18, "Q4_1": 20}[kind])
    read = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
    expected = meant(weight, kind)
    assert torch.allclose(torch.from_numpy(read).double(), expected, rtol=2**-22, atol=0)
    off = (expected - weight.dequantize().double()).abs()
    minima = (weight.zeros.double() * weight.scales.double()).repeat_interleave(group_size, 1)
    assert (off <= minima * 2**-11).all()  # the rounding of the minimum to half precision, and nothing else
    rounding = Rounding()
    back = from_blocks(blocks, kind, (5, 256), "x", rounding)
    assert torch.equal(back.dequantize(), weight.dequantize()) and rounding.largest == 0
    assert back.group_size == group_size  # repeated scales are found again


def test_the_first_sixteen_codes_are_the_low_halves():
    codes = torch.arange(32).remainder(16).to(torch.uint8)[None]
    codes[0, 16:] = 15 - codes[0, 16:]
    weight = GridWeight(codes, torch.tensor([[3]], dtype=torch.uint8), torch.tensor([[0.5]], dtype=torch.bfloat16), 4)
    blocks = to_blocks(replace(weight, scales=weight.scales.half()), "Q4_1", "x")[0]
    assert blocks[:4].view(torch.float16).tolist() == [0.5, -1.5]
    assert blocks[4:].tolist() == [code + 16 * (15 - code) for code in range(16)]


def test_q4_0_of_another_program_keeps_its_negative_scales():
    """ggml gives code 0 to the largest magnitude, so half of its scales are negative; and fp16 is not bf16."""
    values = torch.randn(7, 96, generator=torch.Generator().manual_seed(2)).numpy()
    stored = gguf.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    exact = torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType.Q4_0))
    rounding = Rounding()
    back = from_blocks(torch.from_numpy(stored), "Q4_0", (7, 96), "x", rounding)
    assert (back.scales < 0).any() and (back.scales > 0).any()
    assert back.group_size == 32 and (back.zeros == 8).all()
    assert ((back.dequantize() - exact).abs() <= exact.abs() * 2**-8).all()
    assert 2**-10 < rounding.largest <= 2**-8 and rounding.count == 7 * 3


def test_minima_that_lie_on_no_grid_are_refused():
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(3)).numpy()
    stored = torch.from_numpy(gguf.quantize(values, gguf.GGMLQuantizationType.Q4_1))
    with pytest.raises(CheckpointError, match=r"w has minima that are no whole multiples of their scales \(100.0% of"):
        from_blocks(stored, "Q4_1", (4, 64), "w", Rounding())


def test_a_block_of_zeros():
    stored = gguf.quantize(torch.zeros(1, 32).numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert not from_blocks(torch.from_numpy(stored), "Q4_0", (1, 32), "x", Rounding()).dequantize().any()


@pytest.mark.parametrize("scale", [7500, float("inf")])
def test_a_minimum_beyond_half_precision_is_refused(scale):
    weight = random_weight(4, 32)
    weight.scales[2, 3], weight.zeros[2, 3] = scale, 9
    with pytest.raises(CheckpointError, match="layer has a zero point further down than half precision reaches"):
        to_blocks(replace(weight, scales=weight.scales.half()), "Q4_1", "layer")
