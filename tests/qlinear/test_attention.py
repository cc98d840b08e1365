"""Attention over a cache of bfloat16 and one of int8, against float64 on every instruction set: all head sizes, all
ways of sharing a key head, odd lengths.
"""

import ctypes
import math
from dataclasses import dataclass

import numpy as np
import pytest

from qlinear.backends.cpu import native_decoder
from qlinear.backends.cpu.arrays import to_bfloat16

TILE, STEP = 16, 128


@dataclass(frozen=True)
class Case:
    """What some rows ask: `tokens` of them for each of `group` heads, from position `first` on, over [begin, end)."""

    head_dim: int
    group: int
    first: int
    tokens: int
    begin: int
    end: int
    window: int = 0
    cap: float = 0.0

    @property
    def width(self) -> int:
        return -(-self.head_dim // 16) * 16

    @property
    def room(self) -> int:
        return -(-self.end // STEP) * STEP

    @property
    def rows(self) -> int:
        return self.tokens * self.group

    def weights(self, q, keys):
        """Scores `(rows, end)` as they count, and their softmax, in float64."""
        scores = q @ keys.T / math.sqrt(self.head_dim)
        if self.cap:
            scores = self.cap * np.tanh(scores / self.cap)
        position = self.first + np.arange(self.rows)[:, None] // self.group
        other = np.arange(self.end)[None]
        hidden = (other > position) | (other < self.begin)
        if self.window:
            hidden |= other <= position - self.window
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return scores, weights / weights.sum(1, keepdims=True)

    def run(self, library, q, keys, values, kv_bits):
        """q `(rows, head_dim)`; keys, values: of the cache, laid out. Returns maxima and results `(rows, head_dim)`."""
        padded = np.zeros((self.rows, self.width), np.float32)
        padded[:, : self.head_dim] = q
        bits = to_bfloat16(padded)
        maxima, sums = np.empty((2, self.rows), np.float32)
        out = np.empty((self.rows, self.width), np.float32)
        job = native_decoder.AttentionJob(
            bits.ctypes.data, keys.ctypes.data, values.ctypes.data, self.rows, self.group, self.first, self.window,
            self.begin, self.end, self.width, 1 / math.sqrt(self.head_dim), self.cap, maxima.ctypes.data,
            sums.ctypes.data, out.ctypes.data, kv_bits,
        )  # fmt: skip
        library.awq_attend(ctypes.byref(job))
        return maxima, (out / sums[:, None])[:, : self.head_dim]


CASES = [
    *(Case(head_dim, 3, 299, 1, 0, 300) for head_dim in (64, 80, 96, 128, 256)),
    *(Case(64, group, 131, 2, 0, 133) for group in range(1, 9)),
    Case(96, 5, 0, 1, 0, 1),
    Case(80, 7, 40, 9, 0, 49),
    Case(64, 8, 300, 8, 256, 308, cap=3.0),
    Case(128, 1, 0, 33, 0, 33, cap=2.0),
    Case(16, 2, 200, 20, 194, 220, window=7),
    Case(80, 3, 500, 1, 256, 501, window=200),
    Case(256, 4, 250, 6, 130, 256, window=126, cap=5.0),
    Case(24, 4, 500, 1, 0, 256),
]


def padded_to(case, array):
    out = np.zeros((case.room, case.width), array.dtype)
    out[: case.end, : case.head_dim] = array
    return out


def laid_out_bf16(case, keys, values):
    """Keys `(tiles, width / 2, 16, 2)` and values `(positions / 2, width, 2)` of arrays `(end, head_dim)`."""
    keys, values = (to_bfloat16(padded_to(case, one)) for one in (keys, values))
    tiles = keys.reshape(-1, TILE, case.width // 2, 2).transpose(0, 2, 1, 3)
    pairs = values.reshape(-1, 2, case.width).transpose(0, 2, 1)
    return np.ascontiguousarray(tiles), np.ascontiguousarray(pairs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cache_of_bfloat16(library, case):
    random = np.random.default_rng(0)
    q, keys, values = (random.standard_normal((n, case.head_dim)) for n in (case.rows, case.end, case.end))
    q, keys, values = (rounded_to_bf16(one) for one in (1.5 * q, 1.5 * keys, values))
    found_maxima, found = case.run(library, q, *laid_out_bf16(case, keys, values), 16)
    scores, weights = case.weights(q, keys)
    np.testing.assert_allclose(found_maxima, scores.max(1), rtol=1e-5, atol=1e-5)
    # each weight is rounded to 8 bits on its own: errors add up as their squares do
    size = np.sqrt(weights**2 @ values**2)
    assert (np.abs(found - weights @ values) <= 3 * 2**-8 * size + 1e-5).all()


@pytest.mark.parametrize("kv_bits", [16, 8])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_a_query_that_is_no_number_gives_none(library, cap, kv_bits):
    case = Case(64, 2, 30, 3, 0, 33, cap=cap)
    random = np.random.default_rng(0)
    q, keys, values = (random.standard_normal((n, case.head_dim)) for n in (case.rows, case.end, case.end))
    q[3, 7] = np.nan
    if kv_bits == 16:
        tiles = laid_out_bf16(case, keys.astype(np.float32), values.astype(np.float32))
    else:
        tiles = (laid_out_int8(case, *random_int8(random, case), keys) for keys in (True, False))
    _, found = case.run(library, q, *tiles, kv_bits)
    assert np.array_equal(np.isnan(found).all(1), np.arange(case.rows) == 3)
    assert np.isfinite(np.delete(found, 3, 0)).all()


def rounded_to_bf16(array):
    return (to_bfloat16(array.astype(np.float32)).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def laid_out_int8(case, integers, scales, keys):
    """Tiles of integers `(end, head_dim)` and of float32 scales `(end)`, as keys or as values."""
    whole, by_position = padded_to(case, integers), np.zeros(case.room, np.float32)
    by_position[: case.end] = scales
    if keys:
        raised = (whole.astype(np.int16) + 128).astype(np.uint8)
        tiles = raised.reshape(-1, TILE, case.width // 4, 4).transpose(0, 2, 1, 3)
    else:
        tiles = whole.view(np.uint8).reshape(-1, 4, 4, case.width).transpose(0, 1, 3, 2)
    tiles = np.ascontiguousarray(tiles).reshape(len(tiles), -1)
    return np.concatenate([tiles, by_position.view(np.uint8).reshape(len(tiles), -1)], axis=1)


def random_int8(random, case):
    integers = random.integers(-127, 128, (case.end, case.head_dim)).astype(np.int8)
    return integers, random.uniform(0.001, 0.02, case.end).astype(np.float32)


def exact_queries(random, case):
    """Rows that int8 with one scale holds exactly: integers, the largest of which is 127, over a power of two."""
    integers = random.integers(-126, 127, (case.rows, case.head_dim))
    integers[:, 0] = 127
    return integers / 2.0 ** random.integers(4, 8, (case.rows, 1))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cache_of_int8(library, case):
    """Nothing is rounded but weights, to 16 bits: the keys and values are what they are, and so are the queries."""
    random = np.random.default_rng(1)
    keys, key_scales = random_int8(random, case)
    values, value_scales = random_int8(random, case)
    q = exact_queries(random, case)
    tiles = laid_out_int8(case, keys, key_scales, True), laid_out_int8(case, values, value_scales, False)
    found_maxima, found = case.run(library, q, *tiles, 8)

    exact_keys, exact_values = (
        one.astype(np.float64) * scales[:, None] for one, scales in ((keys, key_scales), (values, value_scales))
    )
    scores, weights = case.weights(q, exact_keys)
    np.testing.assert_allclose(found_maxima, scores.max(1), rtol=1e-6, atol=1e-6)
    # half of 1 / 65535 of a step's largest weighted scale, for every position that the row sees
    largest = (weights * value_scales).max(1, keepdims=True)
    rounding = largest * (weights > 0).sum(1, keepdims=True) * np.abs(values).max() / 65535 / 2
    assert (np.abs(found - weights @ exact_values) <= rounding + 2e-6 * np.abs(exact_values).max()).all()


def test_queries_are_rounded_to_a_127th_of_their_largest(library):
    case = Case(64, 4, 199, 1, 0, 200)
    random = np.random.default_rng(2)
    keys, key_scales = random_int8(random, case)
    q = rounded_to_bf16(random.standard_normal((case.rows, case.head_dim)))
    values, value_scales = random_int8(random, case)
    tiles = laid_out_int8(case, keys, key_scales, True), laid_out_int8(case, values, value_scales, False)
    found_maxima, _ = case.run(library, q, *tiles, 8)
    step = np.abs(q).max(1, keepdims=True) / 127
    rounded = np.rint(q / step) * step
    exact_keys = keys.astype(np.float64) * key_scales[:, None]
    # ties aside, integers are the nearest: of scores each, none is off by more than a tie's worth
    scores, _ = case.weights(rounded, exact_keys)
    np.testing.assert_allclose(found_maxima, scores.max(1), rtol=1e-2)
    assert not np.allclose(found_maxima, case.weights(q, exact_keys)[0].max(1), rtol=1e-5)


@pytest.mark.parametrize("kv_bits", [8, 16])
def test_a_row_has_the_same_bits_in_any_company(library, kv_bits):
    """Of a part of a prompt, read together and a token at a time."""
    case = Case(64, 3, 150, 10, 0, 160)
    random = np.random.default_rng(3)
    if kv_bits == 8:
        made = [random_int8(random, case) for _ in range(2)]
        tiles = laid_out_int8(case, *made[0], True), laid_out_int8(case, *made[1], False)
    else:
        tiles = laid_out_bf16(case, *(random.standard_normal((case.end, case.head_dim)) for _ in range(2)))
    q = random.standard_normal((case.rows, case.head_dim))
    together = case.run(library, q, *tiles, kv_bits)[1]
    for token in range(case.tokens):
        alone = Case(64, 3, case.first + token, 1, 0, case.first + token + 1)
        rows = slice(3 * token, 3 * token + 3)
        assert (alone.run(library, q[rows], *tiles, kv_bits)[1] == together[rows]).all()


@pytest.mark.parametrize("of_keys", [True, False], ids=["key", "value"])
def test_what_is_not_a_number_comes_out_as_such(library, of_keys):
    """A scale of NaN, which is what an infinite key or value gets, is seen by those who see its position."""
    case = Case(32, 2, 40, 3, 0, 43)
    random = np.random.default_rng(4)
    keys, values = (list(random_int8(random, case)) for _ in range(2))
    (keys if of_keys else values)[1][42] = np.nan
    tiles = laid_out_int8(case, *keys, True), laid_out_int8(case, *values, False)
    _, found = case.run(library, exact_queries(random, case), *tiles, 8)
    assert np.isnan(found[4:]).all() and (np.isfinite(found[:4]).all() or not of_keys)
