"""Random weights on the grid, what they give in float64, and how far a kernel may be off."""

import torch

from qlinear.backends.cpu import native
from qlinear.grid import GridWeight

INT16 = ("avx2", "avxvnni", "avx512vnni")  # they round bfloat16 activations to int16, a power of two a group


def random_weight(n, k, bits, group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(n, k // group, generator=generator) * 0.02 + 0.001).bfloat16()
    return GridWeight(codes, zeros, scales, bits)


def reference(x, weight, bias=None):
    """`(y, size)` in float64: the exact result, and the sum of |x| * scale * levels that errors are measured by."""
    n, k = weight.codes.shape
    group = k // weight.scales.shape[1]
    scales = weight.scales.double().repeat_interleave(group, 1)
    dense = (weight.codes.double() - weight.zeros.double().repeat_interleave(group, 1)) * scales
    y = x.double() @ dense.t()
    if bias is not None:
        y += bias.double()
    return y, x.double().abs() @ (scales * (2**weight.bits - 1)).t()


def int16_error(x, weight):
    """How far rounding x to int16 may move a result: half a step of 2^(e - 14) for each value, where the group's
    largest has exponent e; none for values from 2^(e - 7) up, whose eight bits are all there.
    """
    group = x.shape[1] // weight.scales.shape[1]
    values = x.double().abs().unflatten(1, (-1, group))
    exponent = values.amax(2, keepdim=True).log2().floor().clamp(min=-112)
    half_step = torch.where(values < 2 ** (exponent - 7), 2 ** (exponent - 15), 0).flatten(1)
    levels = (weight.codes.double() - weight.zeros.double().repeat_interleave(group, 1)).abs()
    return half_step @ (levels * weight.scales.double().repeat_interleave(group, 1)).t()


def assert_close(y, x, weight, bias=None, isa=None):
    """Within float32 rounding of the sum, and one rounding of the result to its own type.

    isa: what y was computed on; None: the instruction set in use.
    """
    exact, size = reference(x, weight, bias)
    rounding = 2**-8 if y.dtype == torch.bfloat16 else 2**-23
    assert y.dtype == x.dtype and y.shape == exact.shape
    allowed = rounding * exact.abs() + 5e-7 * size
    if y.dtype == torch.bfloat16 and (isa or native.library().awq_isa().decode()) in INT16:
        allowed += int16_error(x, weight)
    excess = (y.double() - exact).abs() - allowed
    assert excess.max() <= 0, f"off by {excess.max():.3g} more than rounding explains"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_rounded(y, exact):
    """Within one rounding to bfloat16 and a little float32."""
    excess = (y.double() - exact).abs() - 2**-8 * exact.abs() - 1e-6 * exact.abs().max()
    assert excess.max() <= 0, f"off by {excess.max():.3g} more than rounding explains"
