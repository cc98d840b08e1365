"""Quantized linears of the three formats as the cpu's kernels take them, by numpy: torch takes seconds to load.

Only what needs no more than a turn or another order of nibbles is read here. Everything else raises `Unsupported` and
is opened the long way (`checkpoints.formats`), which knows every arrangement, and says what is wrong with others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from checkpoints.formats.names import AWQ_ORDER
from qlinear.backends.cpu.arrays import as_float32, is_finite, to_bfloat16
from qlinear.backends.cpu.pack import StoredWeight
from qlinear.backends.stack import Unsupported
from qlinear.sizes import GROUP_SIZES

# One in every field of a word of four-bit zero points, and the highest bit of each.
ONES, HIGHEST = np.uint32(0x11111111), np.uint32(0x88888888)


@dataclass
class Rounded:
    """How far scales were moved to be bfloat16, relative to each; zeros do not change and are not counted."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    def __call__(self, scales: np.ndarray) -> np.ndarray:
        """Floats of any width as bfloat16, contiguous, and the change put on record."""
        if scales.dtype == np.uint16:
            return np.ascontiguousarray(scales)
        exact = as_float32(scales)
        made = to_bfloat16(exact)
        there = exact != 0
        change = np.abs(as_float32(made)[there].astype(np.float64) / exact[there] - 1)
        self.count += change.size
        if change.size:
            self.total, self.largest = self.total + float(change.sum()), max(self.largest, float(change.max()))
        return made

    def notes(self) -> tuple[str, ...]:
        return rounding_notes(self.total / max(1, self.count), self.largest)


def rounding_notes(mean: float, largest: float) -> tuple[str, ...]:
    """What there is to say of scales that were changed so, relative to themselves."""
    told = f"by {mean:.2%} on average, {largest:.2%} at most"
    return (f"the scales are rounded to the bfloat16 that the kernels hold: {told}",) if largest else ()


@dataclass(frozen=True)
class Tensors:
    """What a linear's reader asks for. array: of a stored tensor; has: whether there is one of that name."""

    name: str
    array: Callable[[str], np.ndarray]
    has: Callable[[str], bool]
    rounded: Rounded

    def words(self, part: str) -> np.ndarray:
        found = self.array(f"{self.name}.{part}")
        if found.dtype != np.int32 or found.ndim != 2:
            raise Unsupported(f"{self.name}.{part} is not stored as words")
        return found

    def scales(self, part: str) -> np.ndarray:
        """Bfloat16, contiguous."""
        found = self.array(f"{self.name}.{part}")
        if found.ndim != 2 or found.dtype not in (np.uint16, np.float16, np.float32):
            raise Unsupported(f"{self.name}.{part} is not stored as scales")
        if not is_finite(found if found.dtype == np.uint16 else to_bfloat16(as_float32(found))):
            raise Unsupported(f"{self.name}.{part} holds a value that is not finite")
        return self.rounded(found)


class Linears(Protocol):
    """How a checkpoint's linears are quantized. parts: what stands in the place of "weight", the first always does."""

    parts: tuple[str, ...]

    def read(self, stored: Tensors) -> StoredWeight:
        """Raises `Unsupported` for what is stored in another way."""
        ...


@dataclass(frozen=True)
class CompressedLinears:
    """The compressed-tensors format, each linear of one of the bits and in groups of one of the sizes. It is how the
    kernels' packer wants them."""

    bits: frozenset[int]
    symmetric: bool
    group_sizes: frozenset[int]
    parts: tuple[str, ...] = field(default=("weight_packed", "weight_zero_point", "weight_scale", "weight_shape"))

    def read(self, stored: Tensors) -> StoredWeight:
        words, scales = stored.words("weight_packed"), stored.scales("weight_scale")
        (n, groups), bits = scales.shape, self._bits_of(stored, words)
        zeros = middle_zeros(bits, n, groups) if self.symmetric else stored.words("weight_zero_point")
        return _checked(stored.name, StoredWeight(words, zeros, scales, n, words.shape[1] * 32 // bits, bits), self)

    def _bits_of(self, stored: Tensors, words: np.ndarray) -> int:
        """Where linears differ, the words of a row and its length tell."""
        if len(self.bits) == 1:
            return next(iter(self.bits))
        shape = stored.array(f"{stored.name}.weight_shape")
        held = 32 * words.shape[1]
        found = [bits for bits in self.bits if shape.shape == (2,) and held == bits * int(shape[1])]
        if not found:
            raise Unsupported(f"{stored.name} is of none of {sorted(self.bits)} bits")
        return found[0]


@dataclass(frozen=True)
class AwqLinears:
    """AutoAWQ's GEMM arrangement (`checkpoints.formats.hf_awq`)."""

    group_sizes: frozenset[int]
    bits: int = 4
    parts: tuple[str, ...] = field(default=("qweight", "qzeros", "scales"))

    def read(self, stored: Tensors) -> StoredWeight:
        scales = _turned(stored.scales("scales"))
        codes, zeros = (_straighten(stored.words(part)) for part in ("qweight", "qzeros"))
        if codes.shape[0] % 8 or codes.shape[1] % 8:
            raise Unsupported(f"{stored.name} has sizes that are no eights")
        # Two codes a byte, then the bytes of a row together.
        pairs = _turned(codes[0::2] | codes[1::2] << 4)
        lines = zeros[:, 0::2] | zeros[:, 1::2] << 4
        packed = np.ascontiguousarray(lines).view(np.int32)
        n, k = scales.shape[0], codes.shape[0]
        return _checked(stored.name, StoredWeight(pairs.view(np.int32), _turned(packed), scales, n, k, 4), self)


@dataclass(frozen=True)
class GptqLinears:
    """GPTQ's versions (`checkpoints.formats.gptq`), in which words lie as the packer wants them, but turned.

    less_one: whether zero points are stored less one; borrows: by subtracting whole words.
    """

    bits: int
    group_sizes: frozenset[int]
    less_one: bool
    borrows: bool
    parts: tuple[str, ...] = field(default=("qweight", "qzeros", "scales", "g_idx"))

    def read(self, stored: Tensors) -> StoredWeight:
        words, scales = _turned(stored.words("qweight")), _turned(stored.scales("scales"))
        n, k = len(words), words.shape[1] * 32 // self.bits
        weight = StoredWeight(words, self._zeros(stored), scales, n, k, self.bits)
        _checked(stored.name, weight, self)
        if stored.has(order := f"{stored.name}.g_idx"):
            if not np.array_equal(stored.array(order), np.arange(weight.k) // weight.group_size):
                raise Unsupported(f"{order} has groups of inputs that are no neighbours")
        return weight

    def _zeros(self, stored: Tensors) -> np.ndarray:
        zeros = stored.words("qzeros")
        if self.less_one:
            fields = zeros.view(np.uint32)
            # The highest bit of a field whose bits are all set: there is no telling what it stands for.
            full = fields & fields << 1 & fields << 2 & fields << 3 & HIGHEST
            if full.any() and not self.borrows:
                raise Unsupported(f"{stored.name}.qzeros holds 15")
            zeros = (fields + ONES).view(np.int32)
        return _turned(zeros)


def _checked(name: str, weight: StoredWeight, linears: Linears) -> StoredWeight:
    """Raises `Unsupported` unless all shapes are of one linear in groups that the kernels have."""
    n, k, groups = weight.n, weight.k, weight.scales.shape[1]
    group_size = k // groups if groups else 0
    sizes = linears.group_sizes.intersection(GROUP_SIZES)
    shapes = weight.words.shape == (n, k * weight.bits // 32) and weight.zeros.shape == (
        -(-n * weight.bits // 32),
        groups,
    )
    if not shapes or group_size not in sizes or k % group_size:
        raise Unsupported(f"{name} is not stored as this program does")
    return weight


def _straighten(words: np.ndarray) -> np.ndarray:
    """`(R, C / 8)` int32 words of AutoAWQ's order as `(R, C)` uint8 codes."""
    rows, count = words.shape
    stored = np.ascontiguousarray(words).view(np.uint8).reshape(rows, count, 4)
    codes = np.empty((rows, count, 8), np.uint8)
    for nibble, column in enumerate(AWQ_ORDER):
        codes[..., column] = stored[..., nibble // 2] >> 4 * (nibble % 2) & 15
    return codes.reshape(rows, count * 8)


def _turned(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T)


def middle_zeros(bits: int, rows: int, groups: int) -> np.ndarray:
    """The zero points of a symmetric weight, as `qlinear.packing.middle_zeros` has them."""
    at = np.arange(-(-rows * bits // 32) * 32)
    words = np.packbits((at % bits == bits - 1) & (at < rows * bits), bitorder="little").view(np.int32)
    return np.repeat(words[:, None], groups, axis=1)
