"""Tensors of a checkpoint some of whose float matrices lie in it as bytes (`checkpoints.formats.in_bytes`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from checkpoints.formats.in_bytes import PARTS, SCALES, WORDS, from_bytes, shape_of
from checkpoints.formats.stored import check_finite
from checkpoints.sources import TensorSource
from qlinear.backends.cpu.arrays import host_array
from qlinear.errors import CheckpointError


def matrix(words: Tensor, scales: Tensor) -> Tensor:
    """`(N, K)` bfloat16, of what is stored of it."""
    return torch.from_numpy(from_bytes(words.numpy(), host_array(scales))).view(torch.bfloat16)


class ByteSource:
    """`TensorSource` to which they are bfloat16 as any other."""

    def __init__(self, source: TensorSource, group_sizes: Mapping[str, int]):
        """group_sizes: of those matrices, by the name that the files have for them, without `.weight`.

        Raises `CheckpointError` for one that is not there, or not whole.
        """
        self.files, self._source, self._group_sizes = source.files, source, group_sizes
        self.shapes = dict(source.shapes)
        for name, size in group_sizes.items():
            shape = shape_of(name, size, source.shapes)
            if shape is None:
                raise CheckpointError(f"{name} is not stored as the 8 bits in groups of {size} that the config says")
            self.shapes = {stored: of for stored, of in self.shapes.items() if stored not in _parts(name)}
            self.shapes[f"{name}.weight"] = shape

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor]:
        base = name.removesuffix(".weight")
        if base == name or base not in self._group_sizes:
            with self._source.borrow(name) as tensor:
                yield tensor
            return
        with self._source.borrow(f"{base}.{WORDS}") as words, self._source.borrow(f"{base}.{SCALES}") as scales:
            if words.dtype != torch.int32 or scales.dtype != torch.bfloat16:
                raise CheckpointError(
                    f"{base} is stored as {words.dtype} and {scales.dtype}, not as int32 and bfloat16"
                )
            check_finite(f"{base}.{SCALES}", scales)
            made = matrix(words, scales)
        yield made

    def names_in(self, model: nn.Module) -> dict[str, str] | None:
        return self._source.names_in(model)


def _parts(name: str) -> set[str]:
    return {f"{name}.{part}" for part in PARTS}
