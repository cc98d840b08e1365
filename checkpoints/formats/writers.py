"""What a checkpoint is exported to: which linears a format holds, and how it writes them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from checkpoints.formats import compressed_tensors, gptq, hf_awq
from checkpoints.formats.stored import StoredLinear, runs_in
from qlinear.errors import OptionError
from qlinear.grid import Grid, GridWeight


@dataclass(frozen=True)
class Body:
    """The linears that are written quantized: what all of them share.

    group_size: the smallest of them, into which the others are cut, their scales repeated; kept: names of all other
    linears; head: of the output head, wherever it is.
    """

    bits: int
    group_size: int
    symmetric: bool
    kept: list[str]
    head: str | None


class Writer(Protocol):
    """dtype: of floats, and of scales; None: as they are; knows_head: whether readers know a quantized output head."""

    name: str
    dtype: torch.dtype | None
    knows_head: bool

    def fits(self, linear: StoredLinear) -> bool:
        """Whether the format has a place for a linear of this shape. Raises `OptionError` for one that it never has."""

    def tensors(self, weight: GridWeight, bias: Tensor | None, body: Body) -> dict[str, Tensor]:
        """What the files hold of a linear, by the last part of the name."""

    def section(self, body: Body) -> dict:
        """The `quantization_config` of `config.json`."""


@dataclass(frozen=True)
class AwqWriter:
    """AutoAWQ's GEMM arrangement."""

    name: str = "awq"
    dtype: torch.dtype | None = field(default=torch.float16)
    knows_head: bool = False

    def fits(self, linear: StoredLinear) -> bool:
        if linear.bits != hf_awq.BITS:
            raise OptionError(
                f"`format=awq` has {hf_awq.BITS} bits only, and this checkpoint has {linear.bits}; the formats "
                f"compressed-tensors and gptq have {linear.bits}"
            )
        return linear.shape[0] % hf_awq.PER_WORD == 0

    def tensors(self, weight: GridWeight, bias: Tensor | None, body: Body) -> dict[str, Tensor]:
        return hf_awq.linear_tensors(weight, bias)

    def section(self, body: Body) -> dict:
        return hf_awq.quantization_section(body.group_size, body.kept)


@dataclass(frozen=True)
class GptqWriter:
    """GPTQ's first version, which all of its readers know, for symmetric weights; the second for others, of which
    GPTQModel believes the first only where it has written it."""

    name: str = "gptq"
    dtype: torch.dtype | None = field(default=torch.float16)
    knows_head: bool = False

    def fits(self, linear: StoredLinear) -> bool:
        return linear.shape[0] % gptq.WORD_BITS == 0

    def tensors(self, weight: GridWeight, bias: Tensor | None, body: Body) -> dict[str, Tensor]:
        return gptq.linear_tensors(weight, bias, self._version(body))

    def section(self, body: Body) -> dict:
        kept = [name for name in body.kept if name != body.head]
        return gptq.quantization_section(body.bits, body.group_size, body.symmetric, self._version(body), kept)

    @staticmethod
    def _version(body: Body) -> str:
        return gptq.V1 if body.symmetric else gptq.V2


@dataclass(frozen=True)
class CompressedTensorsWriter:
    """The format that `quantize` writes, with one group size for all, which is what newer readers take."""

    name: str = "compressed-tensors"
    dtype: torch.dtype | None = None
    knows_head: bool = True

    def fits(self, linear: StoredLinear) -> bool:
        return True

    def tensors(self, weight: GridWeight, bias: Tensor | None, body: Body) -> dict[str, Tensor]:
        return compressed_tensors.linear_tensors(weight, bias, body.symmetric)

    def section(self, body: Body) -> dict:
        grid = Grid(body.bits, body.group_size, body.symmetric)
        head = None if body.head is None or body.head in body.kept else (body.head, body.group_size)
        return compressed_tensors.quantization_section(grid, head, body.kept)


WRITERS: dict[str, Writer] = {writer.name: writer for writer in (CompressedTensorsWriter(), AwqWriter(), GptqWriter())}


def common_group_size(linears: Iterable[StoredLinear]) -> int:
    return min(runs_in(linear.group_size) for linear in linears)


def regrouped(weight: GridWeight, group_size: int) -> GridWeight:
    """The same weight in smaller groups, with its scales and zero points repeated."""
    repeat = weight.group_size // group_size
    if repeat == 1:
        return weight
    zeros, scales = (part.repeat_interleave(repeat, 1) for part in (weight.zeros, weight.scales))
    return GridWeight(weight.codes, zeros, scales, weight.bits)
