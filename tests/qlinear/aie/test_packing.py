"""Byte positions are checked against loop nests written here from the documented layout, one weight at a time."""

import struct
from dataclasses import replace

import pytest
import torch

from qlinear.backends.aie.devices import PHX, STX, Kernel
from qlinear.backends.aie.packing import activation_buffer, pack, read_buffers, unpack, write_buffers
from qlinear.backends.aie.tiling import tile_matmul
from qlinear.grid import GridWeight

# The arrays with kernels small enough for loops over every weight; K > 256 takes the last.
SMALL = (Kernel(256, 1024, (32, 128)), Kernel(384, 512, (32, 128)))
SMALL_PHX = replace(PHX, kernels=SMALL)
SMALL_STX = replace(STX, kernels=SMALL)
CASES = [
    # device, K, N, bits, group: one block and several, padded and whole, replicated and not
    (SMALL_PHX, 256, 1024, 4, 128),
    (SMALL_PHX, 192, 300, 4, 64),
    (SMALL_PHX, 640, 700, 3, 32),
    (SMALL_PHX, 512, 130, 4, 256),
    (SMALL_STX, 256, 300, 4, 128),
    (SMALL_STX, 640, 530, 3, 64),
]


def _weight(k, n, bits, group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (n, k // group), generator=generator, dtype=torch.uint8)
    scales = torch.rand(n, k // group, generator=generator).add(0.01).to(torch.bfloat16)
    return GridWeight(codes, zeros, scales, bits), torch.randn(n, generator=generator)


def _bf16_bytes(value):
    return struct.pack("<f", value)[2:]


def _put_nibble(buffer, at, n, value):
    buffer[at] |= value << (4 if n % 2 else 0)


def _phx_buffer(weight, bias, k0, n0, kernel, g):
    """One block of `QuantMatrix`: zeros | scales | codes, all row-major, sub-volumes of 128 columns."""
    k_subv, n_subv = (32, 128) if g == 32 else (128, 128)
    size = 2368 if g == 32 else 8512
    rows, columns = 1 + kernel.k // k_subv, kernel.n // n_subv
    buffer = bytearray(rows * columns * size)

    def start(row, column):
        return (row * 4 + column % 4 + (column // 4) * (rows * 4)) * size

    n_total, k_total = weight.codes.shape
    group = weight.group_size
    for n in range(min(kernel.n, n_total - n0)):
        column, dn = n // n_subv, n % n_subv
        if k0 == 0:
            at = start(0, column) + 2 * dn
            buffer[at : at + 2] = _bf16_bytes(bias[n0 + n])
        for k in range(min(kernel.k, k_total - k0)):
            base, dk = start(1 + k // k_subv, column), k % k_subv
            zeros, scales, codes = base, base + k_subv * n_subv // (2 * g), base + k_subv * n_subv // (2 * g) * 5
            _put_nibble(buffer, codes + dk * n_subv // 2 + dn // 2, n, weight.codes[n0 + n, k0 + k])
            if k % g == 0:
                own = (n0 + n, (k0 + k) // group)
                _put_nibble(buffer, zeros + dk // g * n_subv // 2 + dn // 2, n, weight.zeros[own])
                at = scales + 2 * (dk // g * n_subv + dn)
                buffer[at : at + 2] = _bf16_bytes(weight.scales[own])
    return bytes(buffer)


def _stx_buffer(weight, bias, k0, n0, kernel, g):
    """One block of `mladfQuantMatrix`: codes in strips of 8 columns | zeros to 64 bytes | scales; 32 columns."""
    k_subv, n_subv = (32, 32) if g == 32 else (128, 32)
    size = 640 if g == 32 else 2176
    rows, columns = 1 + kernel.k // k_subv, kernel.n // n_subv
    buffer = bytearray(rows * columns * size)

    def start(row, column):
        return (row * 4 + column % 4 + (column // 4) * (rows * 4)) * size

    n_total, k_total = weight.codes.shape
    group = weight.group_size
    for n in range(min(kernel.n, n_total - n0)):
        column, dn = n // n_subv, n % n_subv
        if k0 == 0:
            at = start(0, column) + 2 * dn
            buffer[at : at + 2] = _bf16_bytes(bias[n0 + n])
        for k in range(min(kernel.k, k_total - k0)):
            base, dk = start(1 + k // k_subv, column), k % k_subv
            codes, zeros = base, base + k_subv * n_subv // 2
            strip = dn // 2 // 4 * k_subv * 4
            _put_nibble(buffer, codes + strip + dk * 4 + dn // 2 % 4, n, weight.codes[n0 + n, k0 + k])
            if k % g == 0:
                own = (n0 + n, (k0 + k) // group)
                _put_nibble(buffer, zeros + dn // 2, n, weight.zeros[own])
                at = zeros + 64 + 2 * dn
                buffer[at : at + 2] = _bf16_bytes(weight.scales[own])
    return bytes(buffer)


class _Lists:
    """A weight as numpy arrays, which index far faster than tensors in a loop."""

    def __init__(self, weight):
        self.codes, self.zeros = weight.codes.numpy(), weight.zeros.numpy()
        self.scales, self.group_size = weight.scales.float().numpy(), weight.group_size


@pytest.mark.parametrize("device, k, n, bits, group", CASES)
def test_every_byte_of_the_buffers(device, k, n, bits, group):
    weight, bias = _weight(k, n, bits, group)
    tiling = tile_matmul(device, 1, k, n, bits, group)
    buffers = write_buffers(pack(weight, bias, tiling), tiling)
    slow = _phx_buffer if device is SMALL_PHX else _stx_buffer
    rounded = bias.to(torch.bfloat16).float().numpy()
    blocks = [(k0, n0) for k0 in range(0, k, tiling.kernel.k) for n0 in range(0, n, tiling.kernel.n)]
    assert len(buffers) == len(blocks) == tiling.k_blocks * tiling.n_blocks
    for buffer, (k0, n0) in zip(buffers, blocks, strict=True):
        assert buffer.numpy().tobytes() == slow(_Lists(weight), rounded, k0, n0, tiling.kernel, tiling.kernel_group)


@pytest.mark.parametrize("device, k, n, bits, group", [*CASES, (PHX, 576, 192, 4, 64), (STX, 4096, 40, 4, 128)])
def test_there_and_back(device, k, n, bits, group):
    weight, bias = _weight(k, n, bits, group)
    tiling = tile_matmul(device, 1, k, n, bits, group)
    buffers = write_buffers(pack(weight, bias, tiling), tiling)
    back, bias_back = unpack(read_buffers(buffers, tiling), tiling)
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.zeros, weight.zeros.repeat_interleave(group // tiling.kernel_group, 1))
    assert torch.equal(back.scales, weight.scales.repeat_interleave(group // tiling.kernel_group, 1))
    assert torch.equal(bias_back, bias.to(torch.bfloat16))
    assert back.group_size == tiling.kernel_group and back.bits == bits


@pytest.mark.parametrize(
    "device, k, n, group, size, block_bytes",
    [
        (PHX, 4096, 4096, 128, 8512, 33 * 32 * 8512),
        (PHX, 4096, 4096, 32, 2368, 129 * 32 * 2368),
        (PHX, 11008, 4096, 128, 8512, 87 * 32 * 8512),
        (STX, 4096, 4096, 128, 2176, 33 * 128 * 2176),
        (STX, 4096, 32000, 32, 640, 129 * 1024 * 640),
    ],
)
def test_documented_sizes(device, k, n, group, size, block_bytes):
    tiling = tile_matmul(device, 1, k, n, 4, group)
    assert (tiling.sub_volume.size, tiling.block_bytes) == (size, block_bytes)
    assert size % 64 == 0


def test_a_weight_without_bias_has_a_bias_row_of_zeros():
    weight, _ = _weight(192, 300, 4, 64)
    tiling = tile_matmul(SMALL_PHX, 1, 192, 300, 4, 64)
    assert not pack(weight, None, tiling).bias.any()


@pytest.mark.parametrize(
    "shape, bits, group, m, words",
    [
        ((4096, 12288), 4, 128, 32, (4 * 6, 32, 8, 128, 0)),
        ((4096, 4096), 4, 64, 1, (2, 128, 1, 32, 0)),
        ((11008, 4096), 3, 32, 8, (2, 344, 8, 32, 1)),
    ],
)
def test_activations_on_phx(shape, bits, group, m, words):
    (k, n), rows = shape, max(1, m - 3)
    k_live = k - group
    x = torch.randn(rows, k_live).to(torch.bfloat16)
    tiling = tile_matmul(PHX, rows, k_live, n, bits, group)
    assert (tiling.kernel.k, tiling.row_blocks) == (k, (m,))
    sent = activation_buffer(x, tiling, m).numpy().tobytes()
    assert len(sent) == m * k * 2 + 2048
    expected = bytearray(m * k * 2)
    for row in range(rows):
        for column, value in enumerate(x[row].tolist()):
            expected[2 * (row * k + column) : 2 * (row * k + column) + 2] = _bf16_bytes(value)
    assert sent[: len(expected)] == bytes(expected)
    assert struct.unpack("<5i", sent[len(expected) : len(expected) + 20]) == words
    assert not any(sent[len(expected) + 20 :])


def test_activations_on_stx_carry_no_parameter_words():
    x = torch.randn(3, 4096).to(torch.bfloat16)
    sent = activation_buffer(x, tile_matmul(STX, 3, 4096, 4096, 4, 128), 128)
    assert torch.equal(sent.view(torch.bfloat16).view(128, 4096)[:3], x)
    assert sent.numel() == 128 * 4096 * 2 and not sent[3 * 4096 * 2 :].any()
