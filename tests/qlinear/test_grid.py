"""The grid against its definition, written out in float64."""

import pytest
import torch

from qlinear.errors import GridError
from qlinear.grid import Grid, check_divides
from qlinear.sizes import BITS, GROUP_SIZES

SHAPES = ((1, 1), (3, 1), (5, 3), (33, 2))  # (rows, groups)


def random_weight(rows: int, columns: int, dtype=torch.float32) -> torch.Tensor:
    """Rows of different magnitude and groups of different skew, as in real models."""
    generator = torch.Generator().manual_seed(rows * columns)
    magnitude = torch.logspace(-6, 3, rows).unsqueeze(1)
    offset = torch.randn(rows, 1, generator=generator)
    return ((torch.randn(rows, columns, generator=generator) + offset) * magnitude).to(dtype)


def reference_fit(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group in float64, the scale rounded to bfloat16 before the zero is chosen from it."""
    levels = 2**grid.bits - 1
    scales, zeros = [], []
    for row in weight.double():
        for group in row.split(grid.group_size):
            low, high = min(group.min().item(), 0.0), max(group.max().item(), 0.0)
            if grid.symmetric:
                low, high = -group.abs().max().item(), group.abs().max().item()
            scale = torch.tensor((high - low) / levels, dtype=torch.float64).to(torch.bfloat16).item() or 1.0
            scales.append(scale)
            zeros.append(2 ** (grid.bits - 1) if grid.symmetric else min(max(round(-low / scale), 0), levels))
    shape = (weight.shape[0], -1)
    return torch.tensor(scales, dtype=torch.float64).view(shape), torch.tensor(zeros).view(shape)


def errors_of_every_code(weight, scales, zeros, bits: int, group_size: int) -> torch.Tensor:
    """|w - (q - zero) * scale| for each q: `(2**bits, N, K)` in float64."""
    spread = scales.double().repeat_interleave(group_size, 1)
    origin = zeros.double().repeat_interleave(group_size, 1)
    return torch.stack([(weight.double() - (code - origin) * spread).abs() for code in range(2**bits)])


def rounded(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool = False):
    grid = Grid(bits, group_size, symmetric)
    return grid.quantize(weight, *grid.fit(weight))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_zeros_and_codes_are_those_of_the_definition(bits, group_size, shape, dtype, symmetric):
    rows, groups = shape
    weight = random_weight(rows, groups * group_size, dtype)
    found = rounded(weight, bits, group_size, symmetric)
    scales, zeros = reference_fit(weight, Grid(bits, group_size, symmetric))
    assert found.scales.dtype == torch.bfloat16 and found.scales.shape == (rows, groups)
    assert torch.equal(found.scales.double(), scales)
    assert found.zeros.dtype == torch.uint8 and torch.equal(found.zeros.long(), zeros)
    assert found.codes.dtype == torch.uint8 and found.codes.shape == weight.shape and found.codes.max() < 2**bits
    assert found.group_size == group_size

    # No code is nearer than the one chosen. float32 may see a tie where float64 sees a hair's difference.
    errors = errors_of_every_code(weight, scales, zeros, bits, group_size)
    chosen = errors.gather(0, found.codes.long().unsqueeze(0)).squeeze(0)
    slack = 1e-5 * scales.repeat_interleave(group_size, 1)
    assert (chosen <= errors.amin(0) + slack).all()
    dequantized = found.dequantize(torch.float64)
    assert torch.allclose((weight.double() - dequantized).abs(), chosen, rtol=0, atol=1e-30)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_weight_is_further_than_half_a_step(bits, symmetric):
    """The range spans the group, and rounding the scale down by bfloat16's 2**-9 cuts off that much of it at most."""
    weight = random_weight(33, 256)
    found = rounded(weight, bits, 64, symmetric)
    steps = (weight.double() - found.dequantize(torch.float64)).abs() / found.scales.double().repeat_interleave(64, 1)
    assert steps.max() <= 0.5 + (2**bits - 1) * 2**-9
    assert steps.mean() < 0.26  # a quarter, if weights lie evenly between the points of the grid


@pytest.mark.parametrize("bits", BITS)
def test_the_scale_is_rounded_before_codes_are_chosen(bits):
    """A range whose exact scale is far from bfloat16: codes of the exact scale would be wrong at the far end."""
    levels = 2**bits - 1
    scale = 1 + 2**-8 + 2**-12  # rounds up to 1 + 2**-7
    weight = torch.linspace(0, levels * scale, 32).unsqueeze(0)
    found = rounded(weight, bits, 32)
    assert found.scales.item() == 1 + 2**-7
    expected = [round(w / (1 + 2**-7)) for w in weight[0].double().tolist()]
    assert found.codes[0].tolist() == expected


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_stays_zero_exactly(bits, symmetric):
    weight = random_weight(16, 128)
    weight[:, ::7] = 0
    assert (rounded(weight, bits, 32, symmetric).dequantize()[:, ::7] == 0).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_zeros(bits, symmetric):
    found = rounded(torch.zeros(2, 64), bits, 32, symmetric)
    assert torch.equal(found.scales, torch.ones(2, 2, dtype=torch.bfloat16))
    assert torch.equal(found.dequantize(), torch.zeros(2, 64))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", BITS)
def test_groups_of_one_sign_keep_their_values(bits, sign):
    """All weights between 10 and 11: without 0 in the range, the clamp of the zero point would lose them all."""
    weight = sign * (10 + torch.rand(4, 64, generator=torch.Generator().manual_seed(0)))
    found = rounded(weight, bits, 32)
    assert (found.zeros == (0 if sign > 0 else 2**bits - 1)).all()
    step = 11 / (2**bits - 1)
    assert (found.dequantize() - weight).abs().max() <= step * (0.5 + 2**-5)


@pytest.mark.parametrize("magnitude", [1e-40, 1e-38, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_tiny_and_huge_values(bits, magnitude, symmetric):
    """bfloat16 has float32's range, so only what lies below its smallest number may vanish, and nothing overflows."""
    weight = torch.linspace(-1, 1, 32).mul(magnitude).unsqueeze(0)
    found = rounded(weight, bits, 32, symmetric)
    assert found.scales.isfinite().all()
    smallest = 2.0**-133
    error = (found.dequantize(torch.float64) - weight.double()).abs().max().item()
    assert error <= max(2 * magnitude / (2**bits - 1), 15 * smallest)


def test_a_huge_weight_harms_only_its_own_group():
    weight = random_weight(1, 128)
    weight[0, 3] = 1e30
    before = rounded(weight, 4, 32)
    weight[0, 3] = 0.0
    after = rounded(weight, 4, 32)
    assert torch.equal(before.dequantize()[:, 32:], after.dequantize()[:, 32:])
    assert (before.dequantize()[0, :32] == 0).sum() == 31


def test_a_weight_that_is_a_transposed_view():
    weight = random_weight(64, 96).t()
    assert not weight.is_contiguous()
    assert torch.equal(rounded(weight, 4, 32).dequantize(), rounded(weight.contiguous(), 4, 32).dequantize())


def test_dequantizing_is_exact_in_float32_and_rounded_once_below():
    found = rounded(random_weight(8, 64), 4, 32)
    signed = found.codes.double() - found.zeros.double().repeat_interleave(32, 1)
    exact = signed * found.scales.double().repeat_interleave(32, 1)
    assert torch.equal(found.dequantize().double(), exact)
    assert torch.equal(found.dequantize(torch.bfloat16), exact.float().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("grid", "bits"),
    [
        (Grid(4, 128), 4 + 20 / 128),
        (Grid(3, 64), 3 + 19 / 64),
        (Grid(4, 128, symmetric=True), 4 + 16 / 128),
        (Grid(3, 32, symmetric=True), 3.5),
    ],
)
def test_what_a_weight_takes_on_disk(grid, bits):
    """A group stores a scale of 16 bits, and a zero point of as many as its codes unless all have the same."""
    assert grid.bits_per_weight == bits


def test_a_group_size_that_does_not_divide():
    check_divides(576, 64, "up_proj")
    with pytest.raises(GridError, match=r"size 128 .* up_proj \(in_features 576\); use `group_size=32 or 64`$"):
        check_divides(576, 128, "up_proj")
    with pytest.raises(GridError, match=r"32 does not divide down_proj .*none of \(32, 64, 128, 256\) does"):
        check_divides(100, 32, "down_proj")
