"""The `gptq` format of GPTQModel, AutoGPTQ and optimum: 3 or 4 bits, in its versions 1 and 2.

Of a linear (N, K) in groups of g it stores `qweight` int32 `(K * bits / 32, N)`, codes packed down a column from the
low bits up, `qzeros` int32 `(K / g, N * bits / 32)`, zero points packed along a row, `scales` float16 `(K / g, N)` and
`g_idx` int32 `(K,)`, the group of each input (GPTQModel 7.7, `PackableQuantLinear.pack_original`). In it
`w = (q - zero) * scale`. Turned by 90 degrees, the words are those of `qlinear.packing`, at 3 bits too.

Version 1 (`checkpoint_format: gptq`, or nothing said) stores zero - 1. A zero point of 0 has no place there: GPTQModel
subtracts and adds 0x11111111 word by word, so that 0 borrows from its neighbour and comes back; others (AutoGPTQ's
kernels) add 1 to every field and make 16 of it. Version 2 (`gptq_v2`) stores the zero points themselves.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.formats.names import BY_WORDS
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
from qlinear.packing import PackedWeight, pack, unpack
from qlinear.replace import LinearWeight
from qlinear.sizes import BITS

WORDS, ZEROS, SCALES, ORDER = "qweight", "qzeros", "scales", "g_idx"
WEIGHT_PARTS = (WORDS, ZEROS, SCALES, ORDER)
WORD_BITS = 32
V1, V2 = "gptq", "gptq_v2"
# One in every field of a word of four-bit zero points.
ONES = 0x11111111


# ---- writing


def linear_tensors(weight: GridWeight, bias: Tensor | None, version: str) -> dict[str, Tensor]:
    """What a checkpoint holds of a linear, by the last part of the name.

    weight: its scales in float16; bias: `(N,)` of any float dtype, or None. Version 1 is only for weights without a
    zero point of 0.
    """
    zeros = weight.zeros - 1 if version == V1 else weight.zeros
    groups = torch.arange(weight.codes.shape[1], dtype=torch.int32) // weight.group_size
    tensors = {
        WORDS: pack(weight.codes, weight.bits).t().contiguous(),
        ZEROS: pack(zeros.t().contiguous(), weight.bits),
        SCALES: weight.scales.t().contiguous(),
        ORDER: groups,
    }
    return tensors if bias is None else tensors | {BIAS: bias.to(torch.float16)}


def quantization_section(bits: int, group_size: int, symmetric: bool, version: str, kept: list[str]) -> dict:
    """The `quantization_config` of `config.json`; kept: names of linears of the blocks that are left in float16."""
    left = {"dynamic": {rf"-:^{re.escape(name)}$": {} for name in kept}} if kept else {}
    return left | {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": symmetric,
        "lm_head": False,
        "checkpoint_format": version,
        "true_sequential": True,
    }


# ---- reading


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says of its weights.

    group_size: None for whole rows; version: V1 or V2; borrows: whether version 1 was written by subtracting whole
    words; ordered: whether inputs were sorted by activation before they were put into groups.
    """

    bits: int
    group_size: int | None
    version: str
    borrows: bool
    rounding: Rounding
    ordered: bool = False


def read_section(section: Any, directory: Path, rounding: Rounding | None = None) -> Quantization:
    """Check a config's `quantization_config` against what this program runs; raises `CheckpointError`.

    rounding: of the scales as they are read; by default to the bfloat16 that the kernels hold.
    """
    where = f"{directory}/config.json"
    bits = section.get("bits")
    if type(bits) is not int or bits not in BITS:
        raise CheckpointError(f"{where} says {bits!r} bits of gptq; this program runs {BITS}")
    group_size = section.get("group_size", 128)
    if type(group_size) is not int or group_size == 0 or group_size < -1:
        raise CheckpointError(f"{where} says group size {group_size!r}; it has to be a whole number, or -1 for rows")
    version = section.get("checkpoint_format") or section.get("format") or V1
    if version not in (V1, V2):
        raise CheckpointError(f"{where} says checkpoint_format {version!r}; what is read here are {V1} and {V2}")
    packed_in = section.get("pack_dtype") or "int32"
    if packed_in != "int32":
        raise CheckpointError(f"{where} packs into {packed_in!r}; int32 is what is read here")
    size, ordered = None if group_size == -1 else group_size, bool(section.get("desc_act")) and group_size != -1
    return Quantization(bits, size, version, _borrows(section), rounding or Rounding(), ordered)


def _borrows(section: dict) -> bool:
    meta = section.get("meta")
    return isinstance(meta, dict) and BY_WORDS in str(meta.get("quantizer", "")).lower()


def check_linear(
    model: nn.Module, name: str, stored: dict[str, tuple[int, ...]], quantization: Quantization
) -> StoredLinear:
    """Check the shapes of a linear's tensors against each other and the model. Raises `CheckpointError`."""
    n, k, takes_bias = linear_of(model, name)
    scales, bits = stored.get(f"{name}.{SCALES}"), quantization.bits
    group_size = quantization.group_size or k
    check_group_size(name, group_size)
    if k % group_size or n * bits % WORD_BITS:
        raise CheckpointError(
            f"{name} is {n}x{k}, scales {scales}: in_features have to come in {group_size}s, zero points fill words"
        )
    groups, has_bias = k // group_size, f"{name}.{BIAS}" in stored
    expected = {WORDS: (k * bits // WORD_BITS, n), ZEROS: (groups, n * bits // WORD_BITS), SCALES: (groups, n)}
    expected[ORDER] = (k,) if f"{name}.{ORDER}" in stored or quantization.ordered else None
    expected[BIAS] = (n,) if takes_bias or has_bias else None
    check_shapes(name, stored, expected, f"gptq, {bits} bits, group size {group_size}")
    return StoredLinear((n, k), bits, groups, False, has_bias, takes_bias)


def read_linear(
    name: str, found: StoredLinear, source: TensorSource, lent: ExitStack, quantization: Quantization
) -> LinearWeight:
    """The linear's weight, on the grid that runs here."""
    tensors = Tensors(name, source, lent)
    if f"{name}.{ORDER}" in source.shapes:
        _check_order(name, tensors.integers(ORDER), found)
    zeros = _zeros(name, tensors.words(ZEROS), found, quantization)
    scales = quantization.rounding(f"{name}.{SCALES}", tensors.floats(SCALES)).t().contiguous()
    repeat = found.group_size // runs_in(found.group_size)
    zeros = zeros.repeat_interleave(repeat, 0)
    weight = PackedWeight(
        tensors.words(WORDS).t().contiguous(),
        pack(zeros, found.bits).t().contiguous(),
        scales.repeat_interleave(repeat, 1),
        found.shape,
        found.bits,
    )
    return LinearWeight(weight, tensors.bias(found))


def _check_order(name: str, groups: Tensor, found: StoredLinear) -> None:
    """Inputs that were sorted by activation (desc_act) are in groups that are no runs of neighbours."""
    if not torch.equal(groups.to(torch.int64), torch.arange(found.shape[1]) // found.group_size):
        raise CheckpointError(
            f"{name}.{ORDER} puts inputs that are no neighbours into one group (desc_act), and the kernels here have a "
            f"scale for {found.group_size} neighbours; take a checkpoint made with desc_act false"
        )


def _zeros(name: str, words: Tensor, found: StoredLinear, quantization: Quantization) -> Tensor:
    """`(K / g, N)` uint8 zero points."""
    n, bits = found.shape[0], found.bits
    if quantization.version == V2:
        return unpack(words, bits, n)
    if quantization.borrows and bits == 4:
        return unpack(words + ONES, bits, n)
    less = unpack(words, bits, n)
    highest = 2**bits - 1
    if not quantization.borrows and (less == highest).any():
        raise CheckpointError(
            f"{name}.{ZEROS} holds {highest}, which readers of gptq's first version take for zero points of 0 or of "
            f"{highest + 1}; ask who made it for a checkpoint_format of {V2}"
        )
    return less + 1 & highest
