"""Packing against its definition in Python integers, and against the library whose format it is."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from qlinear.grid import GridWeight
from qlinear.packing import JoinedWeight, PackedWeight, pack, unpack
from qlinear.sizes import BITS

COLUMNS = (1, 7, 8, 10, 11, 31, 32, 33, 64, 100, 257)


def random_values(rows: int, columns: int, bits: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def random_grid(n: int, k: int, bits: int, group_size: int) -> GridWeight:
    scales = torch.rand(n, k // group_size, generator=torch.Generator().manual_seed(n)).to(torch.bfloat16)
    return GridWeight(random_values(n, k, bits), random_values(n, k // group_size, bits), scales, bits)


def assert_same(found: GridWeight, expected: GridWeight) -> None:
    assert found.bits == expected.bits
    for name in ("codes", "zeros", "scales"):
        got, wanted = getattr(found, name), getattr(expected, name)
        assert got.dtype == wanted.dtype and torch.equal(got, wanted), name


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("bits", BITS)
def test_words_are_one_long_number_low_bits_first(bits, columns):
    values = random_values(3, columns, bits)
    words = pack(values, bits)
    assert words.dtype == torch.int32 and words.shape == (3, -(-columns * bits // 32))
    for row, packed in zip(values.tolist(), words.tolist(), strict=True):
        number = sum(value << (bits * place) for place, value in enumerate(row))
        assert number == sum((word % 2**32) << (32 * place) for place, word in enumerate(packed))


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("bits", BITS)
def test_bit_for_bit_as_compressed_tensors(bits, columns):
    values = random_values(5, columns, bits)
    signed = (values.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(values, bits), pack_to_int32(signed, bits))
    # Zero points are packed along the other dimension.
    assert torch.equal(pack(values.t(), bits).t(), pack_to_int32(signed, bits, packed_dim=0))


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("bits", BITS)
def test_unpacking_gives_back_what_was_packed(bits, columns):
    values = random_values(4, columns, bits)
    found = unpack(pack(values, bits), bits, columns)
    assert found.dtype == torch.uint8 and torch.equal(found, values)


def test_a_packed_view_unpacks_too():
    values = random_values(6, 64, 3)
    words = pack(values, 3)
    assert torch.equal(unpack(words[::2], 3, 64), values[::2])


def test_thirty_two_three_bit_values_fill_three_words():
    assert pack(random_values(1, 32, 3), 3).shape == (1, 3)
    assert pack(random_values(1, 128, 3), 3).shape == (1, 12)


@pytest.mark.parametrize(("n", "k", "group_size"), [(1, 32, 32), (33, 64, 32), (40, 256, 128), (7, 96, 32)])
@pytest.mark.parametrize("bits", BITS)
def test_a_weight_comes_back_from_its_packed_form(bits, n, k, group_size):
    grid = random_grid(n, k, bits, group_size)
    packed = PackedWeight.pack(grid)
    groups = k // group_size
    assert packed.words.shape == (n, -(-k * bits // 32))
    assert packed.zeros.shape == (-(-n * bits // 32), groups)
    assert packed.shape == (n, k) and packed.group_size == group_size
    assert packed.words.is_contiguous() and packed.zeros.is_contiguous()
    assert_same(packed.unpack(), grid)


@pytest.mark.parametrize("rows", [(64, 32, 32), (33, 7, 40), (1, 1), (10, 22), (5,)])
@pytest.mark.parametrize("bits", BITS)
def test_joining_rows_also_where_zeros_share_a_word(bits, rows):
    grids = [random_grid(n, 64, bits, 32) for n in rows]
    joined = JoinedWeight(tuple(PackedWeight.pack(grid) for grid in grids))
    parts = {name: torch.cat([getattr(grid, name) for grid in grids]) for name in ("codes", "zeros", "scales")}
    whole = GridWeight(bits=bits, **parts)
    assert joined.shape == joined.concat().shape == (sum(rows), 64)
    assert (joined.bits, joined.group_size) == (bits, 32)
    assert_same(joined.unpack(), whole)
    assert torch.equal(joined.concat().zeros, PackedWeight.pack(whole).zeros)
