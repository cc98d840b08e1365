"""The `awq` formats of Hugging Face's libraries: AutoAWQ's GEMM and GEMV arrangements, 4 bits, zero points stored.

Of a linear (N, K) in groups of g, GEMM (https://github.com/casper-hansen/AutoAWQ, `WQLinear_GEMM`) stores
`qweight` int32 `(K, N / 8)` and `qzeros` int32 `(K / g, N / 8)`, in whose word c the i-th nibble from below is of
column `8 c + AWQ_ORDER[i]`, and `scales` float16 `(K / g, N)`. GEMV (`WQLinear_GEMV`) stores `qweight` `(N, K / 8)`,
`qzeros` `(N, P)` and `scales` `(N, 8 P)` in plain order, its groups padded to P words. In both
`w = (q - zero) * scale`, and a bias `(N,)` is float16. `gemv_fast.py` has the third arrangement.

`zero_point` false says that the grid is symmetric. GPTQModel 7.6, whose awq is so unless it is told otherwise, stores
the middle, 8, as every zero point then (`AWQProcessor.pseudo_quantize_tensor`).
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.formats import gemv_fast
from checkpoints.formats.names import AWQ_ORDER
from checkpoints.formats.stored import (
    BIAS,
    Rounding,
    StoredLinear,
    Tensors,
    check_group_size,
    check_shapes,
    linear_of,
    runs_in,
)
from checkpoints.sources import TensorSource
from qlinear.errors import CheckpointError
from qlinear.grid import GridWeight
from qlinear.packing import PackedWeight, unpack
from qlinear.replace import LinearWeight

BITS = 4
MIDDLE = 2 ** (BITS - 1)
WORDS, ZEROS, SCALES = "qweight", "qzeros", "scales"
WEIGHT_PARTS = (WORDS, ZEROS, SCALES)
PER_WORD = 8
GEMM, GEMV, GEMV_FAST = VERSIONS = "gemm", "gemv", "gemv_fast"


# ---- writing


def linear_tensors(weight: GridWeight, bias: Tensor | None) -> dict[str, Tensor]:
    """What a GEMM checkpoint holds of a 4-bit linear, by the last part of the name.

    weight: its scales in float16; bias: `(N,)` of any float dtype, or None.
    """
    tensors = {
        WORDS: _interleave(weight.codes.t().contiguous()),
        ZEROS: _interleave(weight.zeros.t().contiguous()),
        SCALES: weight.scales.t().contiguous(),
    }
    return tensors if bias is None else tensors | {BIAS: bias.to(torch.float16)}


def quantization_section(group_size: int, kept: list[str]) -> dict:
    """The `quantization_config` of `config.json`; kept: names of linears left in float16."""
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": group_size,
        "zero_point": True,
        "version": GEMM,
        "modules_to_not_convert": kept,
    }


def _interleave(values: Tensor) -> Tensor:
    """`(R, C)` uint8 below 16 as `(R, C / 8)` int32 words in AWQ_ORDER."""
    rows, columns = values.shape
    octets = values.view(rows, columns // PER_WORD, PER_WORD)[..., AWQ_ORDER]
    return (octets[..., 0::2] | octets[..., 1::2] << 4).contiguous().view(rows, -1).view(torch.int32)


def _straighten(words: Tensor) -> Tensor:
    """`(R, C / 8)` int32 words in AWQ_ORDER as `(R, C)` uint8."""
    rows, count = words.shape
    stored = words.contiguous().view(torch.uint8).view(rows, count, PER_WORD // 2)
    values = torch.empty(rows, count, PER_WORD, dtype=torch.uint8)
    for nibble, column in enumerate(AWQ_ORDER):
        values[..., column] = stored[..., nibble // 2] >> 4 * (nibble % 2) & 15
    return values.view(rows, count * PER_WORD)


# ---- reading


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says of its weights.

    group_size: None for whole rows; version: in VERSIONS; symmetric: whether every zero point is the middle.
    """

    group_size: int | None
    version: str
    symmetric: bool
    rounding: Rounding


def read_section(section: Any, directory: Path, rounding: Rounding | None = None) -> Quantization:
    """Check a config's `quantization_config` against what this program runs; raises `CheckpointError`.

    rounding: of the scales as they are read; by default to the bfloat16 that the kernels hold.
    """
    where = f"{directory}/config.json"
    bits = section.get("bits", section.get("w_bit", BITS))
    if type(bits) is not int or bits != BITS:
        raise CheckpointError(f"{where} says {bits!r} bits of awq; the format has {BITS}")
    group_size = section.get("group_size", section.get("q_group_size", 128))
    if type(group_size) is not int or group_size == 0 or group_size < -1:
        raise CheckpointError(f"{where} says group size {group_size!r}; it has to be a whole number, or -1 for rows")
    version = section.get("version", section.get("format", GEMM))
    version = version.lower() if isinstance(version, str) else version
    if version not in VERSIONS:
        raise CheckpointError(f"{where} says version {version!r} of awq; what is read here are {', '.join(VERSIONS)}")
    zero_point = section.get("zero_point", True)
    if type(zero_point) is not bool:
        raise CheckpointError(f"{where} says zero_point {zero_point!r}; it has to be true or false")
    return Quantization(None if group_size == -1 else group_size, version, not zero_point, rounding or Rounding())


def check_linear(
    model: nn.Module, name: str, stored: dict[str, tuple[int, ...]], quantization: Quantization
) -> StoredLinear:
    """Check the shapes of a linear's tensors against each other and the model. Raises `CheckpointError`."""
    n, k, takes_bias = linear_of(model, name)
    group_size = quantization.group_size or k
    check_group_size(name, group_size)
    if k % group_size or n % PER_WORD or k % (gemv_fast.COLUMNS if quantization.version == GEMV_FAST else PER_WORD):
        raise CheckpointError(f"{name} is {n}x{k}: out_features have to come in eights, in_features in {group_size}s")
    groups, has_bias = k // group_size, f"{name}.{BIAS}" in stored
    if quantization.version == GEMM:
        expected = {WORDS: (k, n // PER_WORD), ZEROS: (groups, n // PER_WORD), SCALES: (groups, n)}
    elif quantization.version == GEMV:
        padded = _padded_words(k, group_size)
        expected = {WORDS: (n, k // PER_WORD), ZEROS: (n, padded), SCALES: (n, PER_WORD * padded)}
    else:
        floats = (PER_WORD * _padded_words(k, group_size), n)
        expected = {WORDS: (n // gemv_fast.ROWS, k), ZEROS: floats, SCALES: floats}
    expected[BIAS] = (n,) if takes_bias or has_bias else None
    check_shapes(name, stored, expected, f"awq {quantization.version}, group size {group_size}")
    return StoredLinear((n, k), BITS, groups, False, has_bias, takes_bias)


def _padded_words(k: int, group_size: int) -> int:
    """Words of zero points a row in GEMV: for its kernel, whole multiples of 1, 2 or 4 (`calculate_zeros_width`)."""
    multiple = 1 if group_size >= 128 else {64: 2, 32: 4}.get(group_size, 1)
    words = -(-(k // group_size) // PER_WORD)
    return -(-words // multiple) * multiple


def read_linear(
    name: str, found: StoredLinear, source: TensorSource, lent: ExitStack, quantization: Quantization
) -> LinearWeight:
    """The linear's weight, on the grid that runs here."""
    tensors = Tensors(name, source, lent)
    scales = tensors.floats(SCALES)
    if quantization.version == GEMM:
        codes, zeros = _straighten(tensors.words(WORDS)).t(), _straighten(tensors.words(ZEROS)).t()
        scales = scales.t()
    elif quantization.version == GEMV:
        codes, zeros = (
            unpack(tensors.words(WORDS), BITS, found.shape[1]),
            unpack(tensors.words(ZEROS), BITS, found.groups),
        )
        scales = scales[:, : found.groups]
    else:
        scales = scales[: found.groups].t()
        zeros = gemv_fast.zero_points(f"{name}.{ZEROS}", tensors.floats(ZEROS)[: found.groups].t(), scales)
        codes = gemv_fast.unpack_codes(tensors.words(WORDS, torch.int16))
    if quantization.symmetric and (zeros != MIDDLE).any():
        raise CheckpointError(
            f"{name}.{ZEROS} holds zero points other than {MIDDLE}, where the config says that there are none "
            f"(zero_point false); ask who made it which of the two is right"
        )
    repeat = found.group_size // runs_in(found.group_size)
    scales = quantization.rounding(f"{name}.{SCALES}", scales)
    grid = GridWeight(codes.contiguous(), zeros.repeat_interleave(repeat, 1), scales.repeat_interleave(repeat, 1), BITS)
    return LinearWeight(PackedWeight.pack(grid), tensors.bias(found))
