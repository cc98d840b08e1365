"""The emulation against a loop nest that multiplies and adds one float32 at a time, in the documented order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qlinear.backends.aie.devices import PHX, STX, Kernel
from qlinear.backends.aie.execution import ArrayWeight, multiply
from qlinear.backends.aie.packing import pack
from qlinear.backends.aie.tiling import tile_matmul
from qlinear.grid import GridWeight

SMALL = (Kernel(128, 512, (32, 128)), Kernel(256, 512, (32, 128)))
DEVICES = {"phx": replace(PHX, kernels=SMALL), "stx": replace(STX, kernels=SMALL)}
UNIT = 2.0**-24  # float32's unit roundoff


def _bf16(value):
    """Round a float32 to bfloat16, nearest even, on its bits."""
    bits = np.asarray(value, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def _loop_nest(x, weight, bias, block, returned):
    """Before the last rounding: `(M, N)` float32, and per element the sum of magnitudes that bounds its error."""
    codes, zeros = weight.codes.numpy().astype(np.float32), weight.zeros.numpy().astype(np.float32)
    scales, group = weight.scales.float().numpy(), weight.group_size
    (rows, k_total), n_total = x.shape, codes.shape[0]
    out, magnitude = np.zeros((2, rows, n_total), dtype=np.float32)
    for m in range(rows):
        for n in range(n_total):
            total = np.float32(0)
            magnitude[m, n] = abs(bias[n])
            for k0 in range(0, k_total, block):
                acc = bias[n] if k0 == 0 else np.float32(0)
                for k in range(k0, min(k0 + block, k_total)):
                    w = _bf16((codes[n, k] - zeros[n, k // group]) * scales[n, k // group])
                    acc = np.float32(acc + x[m, k] * w)
                    magnitude[m, n] += abs(x[m, k] * w)
                total = returned(acc) if k0 == 0 else np.float32(total + returned(acc))
            out[m, n] = total
    return out, magnitude


def _case(m, k, n, bits, group, seed):
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, k), generator=random, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group), generator=random, dtype=torch.uint8)
    scales = torch.rand(n, k // group, generator=random).add(0.1).mul(0.01).to(torch.bfloat16)
    x = torch.randn(m, k, generator=random).to(torch.bfloat16)
    bias = torch.randn(n, generator=random).to(torch.bfloat16)
    return x, GridWeight(codes, zeros, scales, bits), bias


def _emulate(device, x, weight, bias):
    n, k = weight.codes.shape
    tiling = tile_matmul(device, 1, k, n, weight.bits, weight.group_size)
    return multiply(x, ArrayWeight.dequantize(pack(weight, bias, tiling), tiling)), tiling


@pytest.mark.parametrize(
    "m, k, n, bits, group", [(1, 64, 9, 4, 64), (3, 128, 5, 4, 32), (2, 384, 7, 4, 128), (2, 576, 3, 3, 64)]
)
def test_phx_element_for_element(m, k, n, bits, group):
    x, weight, bias = _case(m, k, n, bits, group, seed=k)
    out, tiling = _emulate(DEVICES["phx"], x, weight, bias)
    expected, magnitude = _loop_nest(x.float().numpy(), weight, bias.float().numpy(), tiling.kernel.k, np.float32)
    # Two orders of the same float32 sum are this close; rounding is monotonic, so the ends bound the bfloat16.
    slack = 2 * (k + 1) * UNIT * magnitude
    out = out.float().numpy()
    assert (out >= _bf16(expected - slack)).all() and (out <= _bf16(expected + slack)).all()
    assert (out == _bf16(expected)).mean() > 0.9


@pytest.mark.parametrize("name", ["phx", "stx"])
@pytest.mark.parametrize("m, k, n, group", [(1, 128, 11, 128), (3, 576, 4, 64)])
def test_bit_for_bit_where_the_order_of_a_sum_cannot_matter(name, m, k, n, group):
    x, weight, bias = _case(m, k, n, 4, group, seed=1)
    # Small integers times powers of two: every partial sum is exact, and all other roundings still happen.
    x = (x.float() * 3).round().to(torch.bfloat16)
    weight = replace(weight, scales=torch.exp2(torch.randint(-2, 3, weight.scales.shape)).to(torch.bfloat16))
    bias = (bias.float() * 8).round().to(torch.bfloat16)
    out, tiling = _emulate(DEVICES[name], x, weight, bias)
    returned = np.float32 if name == "phx" else _bf16
    expected, _ = _loop_nest(x.float().numpy(), weight, bias.float().numpy(), tiling.kernel.k, returned)
    np.testing.assert_array_equal(out.float().numpy(), _bf16(expected))


def test_weights_are_rounded_to_bfloat16_before_the_product():
    # 15 * 1.0078125 = 15.1171875 lies between the bfloat16 15.0625 and 15.125; x = 256 shows which one was used.
    scales = torch.tensor([[1.0078125]], dtype=torch.bfloat16)
    weight = GridWeight(torch.full((1, 32), 15, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8), scales, 4)
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0] = 256
    # 256 * 15.125 = 3872; the bias takes it away, and leaves 0, or 256 * (15.1171875 - 15.125) = -2 without rounding.
    out, _ = _emulate(DEVICES["phx"], x, weight, torch.tensor([-3872.0]))
    assert out.item() == 0.0


def _two_k_blocks():
    # K = 288 takes the kernel of K = 256: the first block sums to 257, the second to 1.
    weight = GridWeight(
        torch.ones(1, 288, dtype=torch.uint8),
        torch.zeros(1, 9, dtype=torch.uint8),
        torch.ones(1, 9, dtype=torch.bfloat16),
        4,
    )
    x = torch.zeros(1, 288, dtype=torch.bfloat16)
    x[0, 0], x[0, 1], x[0, 256] = 250, 7, 1
    return x, weight


def test_the_host_adds_what_the_device_returns():
    x, weight = _two_k_blocks()
    zero = torch.zeros(1)
    # float32 from phx: 257 + 1 = 258. bfloat16 from stx: 257 is a tie that goes to 256, and 256 + 1 does again.
    assert _emulate(DEVICES["phx"], x, weight, zero)[0].item() == 258.0
    assert _emulate(DEVICES["stx"], x, weight, zero)[0].item() == 256.0


def test_only_the_first_k_block_starts_from_the_bias():
    x, weight = _two_k_blocks()
    assert _emulate(DEVICES["phx"], x, weight, torch.tensor([-256.0]))[0].item() == 2.0


def test_wide_weights_are_cut_without_a_seam():
    x, weight, bias = _case(2, 32, 4200, 4, 32, seed=3)
    out, _ = _emulate(PHX, x, weight, bias)
    spread = weight.scales.double().repeat_interleave(32, 1)
    exact = (weight.codes.double() - weight.zeros.double().repeat_interleave(32, 1)) * spread
    exact = x.double() @ exact.to(torch.bfloat16).double().t() + bias.double()
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)
