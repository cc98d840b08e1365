"""Reading a float model out of a `.gguf` file (format: the ggml project's `docs/gguf.md`, versions 2 and 3).

The header is walked here, every count and offset checked against the size of the file, because the readers at hand
trust them: a damaged count makes them loop or allocate without end. What the header means comes from the `gguf`
package (tensor names, block formats), and stands in `gguf_config.py` and `gguf_tokenizer.py`.
"""

import mmap
import re
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from architectures.registry import gguf_readers
from checkpoints.formats.gguf_blocks import from_blocks
from checkpoints.formats.gguf_config import ROPE_TABLES, Described, read_config
from checkpoints.formats.gguf_tokenizer import open_tokenizer
from checkpoints.formats.stored import Rounding
from checkpoints.sources import one_line_errors
from qlinear.errors import ModelError
from qlinear.grid import GridWeight

if TYPE_CHECKING:
    import numpy

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Value type in the header -> struct format; 8 is a string, 9 an array.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
MAX_ARRAY = 1 << 24  # the largest arrays are vocabularies and merges, well below a million entries


@dataclass(frozen=True)
class TensorEntry:
    """shape: in torch's order; kind: ggml's number for the block format; start, size: bytes in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GgufSource:
    """The tensors and metadata of one `.gguf` file; tensors are lent as float32.

    Raises `ModelError` for a file that is not GGUF, is damaged or cut off, or holds an architecture or a block format
    that cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files = (path,)
        self.metadata, self._entries = read_header(path)
        self._refuse_a_part()
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.architecture = self.metadata.get("general.architecture")
        families = gguf_readers()
        if self.architecture not in families:
            raise ModelError(
                f"{path} holds architecture {self.architecture!r}; GGUF files are read for "
                f"{', '.join(families)}: give the model's safetensors directory"
            )
        self.family = families[self.architecture]
        described = Described(path, self.metadata, self.shapes, self.family, self._floats, self._array)
        self.config = read_config(described)
        # What they say stands in the configuration now.
        self.shapes = {name: shape for name, shape in self.shapes.items() if name not in ROPE_TABLES}

    def _refuse_a_part(self) -> None:
        """Raise `ModelError` for one file of a model that was split into several, by its header or its name."""
        count = self.metadata.get("split.count", 0)
        if named := re.search(r"-\d{5}-of-(\d{5})\.gguf$", self.path.name, re.IGNORECASE):
            count = int(named[1])
        if isinstance(count, int) and count > 1:
            raise ModelError(
                f"{self.path} is one of {count} parts of a model, which are not read; join them with llama.cpp's "
                f"llama-gguf-split, or give the model's safetensors directory"
            )

    def _array(self, name: str) -> list | None:
        (found,) = read_arrays(self.path, [name])
        return found if isinstance(found, list) else None

    def tokenizer(self) -> Any:
        return open_tokenizer(self.path, self.metadata, lambda *names: read_arrays(self.path, names))

    def names_in(self, model: torch.nn.Module) -> dict[str, str]:
        import gguf

        number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
        places = {name: name for name in self.shapes}
        for place in model.state_dict():
            module, _, leaf = place.rpartition(".")
            stored = f"{names.get_name(module)}.{leaf}"
            if stored in places:
                places[stored] = place
        return places

    def kind(self, name: str) -> str:
        """What ggml calls the block format of a tensor: F16, Q4_0, Q6_K and others."""
        import gguf

        return gguf.GGMLQuantizationType(self._entries[name].kind).name

    def _bytes(self, name: str) -> "numpy.ndarray":
        """A tensor as it is stored, row by row: `(..., bytes of a row)` uint8."""
        import numpy

        entry = self._entries[name]
        # A plain read, not a map: the pages of the file then never count as this process's memory.
        data = numpy.fromfile(self.path, dtype=numpy.uint8, count=entry.size, offset=entry.start)
        return data.reshape(*entry.shape[:-1], -1)

    def grid(self, name: str, rounding: Rounding) -> GridWeight:
        """A weight in blocks of Q4_0 or Q4_1 as it lies on the grid. Raises `CheckpointError` where it lies on none."""
        stored = torch.from_numpy(self._bytes(name))
        weight = from_blocks(stored, self.kind(name), self.shapes[name], f"{self.path}: {name}", rounding)
        parts = (weight.codes, weight.zeros, weight.scales)
        return GridWeight(*(self.family.gguf.to_module(name, part, self.config) for part in parts), weight.bits)

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor]:
        yield self.family.gguf.to_module(name, self._floats(name), self.config)

    def _floats(self, name: str) -> Tensor:
        """A tensor as it is stored, in float32."""
        import gguf

        entry = self._entries[name]
        with one_line_errors(f"{self.path} cannot be read at {name}"):
            values = gguf.dequantize(self._bytes(name), gguf.GGMLQuantizationType(entry.kind))
            return torch.from_numpy(values.reshape(entry.shape))


def read_header(path: Path, whole: Collection[str] = ()) -> tuple[dict, dict[str, TensorEntry]]:
    """The metadata (an array as its length, but for those that `whole` names) and the tensors of a GGUF file, checked

    against its size.
    """
    with one_line_errors(f"{path} cannot be read"), open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path} is not a GGUF file (it does not start with {MAGIC.decode()})")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data, whole).header()


def read_arrays(path: Path, names: Collection[str]) -> list[list | None]:
    """Arrays of the metadata, None for one that is not there."""
    metadata, _ = read_header(path, names)
    return [metadata.get(name) for name in names]


class _Walk:
    """A position in the header that cannot leave the file."""

    def __init__(self, path: Path, data: mmap.mmap, whole: Collection[str] = ()):
        self.path, self.data, self.at, self.whole = path, data, len(MAGIC), whole

    def header(self) -> tuple[dict, dict[str, TensorEntry]]:
        version = self.scalar("<I")
        if version not in VERSIONS:
            raise ModelError(f"{self.path} is GGUF version {version}; versions 2 and 3 (little-endian) are read")
        tensors, values = self.scalar("<Q"), self.scalar("<Q")
        # The smallest entries: an empty name, one dimension; an empty name, one byte.
        self.expect(tensors * 32 + values * 13)
        metadata = {}
        for _ in range(values):
            key = self.string()
            metadata[key] = self.value(self.scalar("<I"), key in self.whole)
        described = {}
        for _ in range(tensors):
            name = self.string()
            if name in described:
                raise ModelError(f"{self.path} holds {name} twice")
            described[name] = self.tensor(name)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ModelError(f"{self.path} is damaged: alignment {alignment}")
        data_start = -(-self.at // alignment) * alignment
        return metadata, {name: self.placed(name, data_start, *entry) for name, entry in described.items()}

    def expect(self, size: int) -> None:
        """Raise unless `size` more bytes are there."""
        if self.at + size > len(self.data):
            held = len(self.data)
            raise ModelError(f"{self.path} is cut off or damaged: its header says more than its {held} bytes hold")

    def take(self, size: int) -> bytes:
        self.expect(size)
        self.at += size
        return self.data[self.at - size : self.at]

    def scalar(self, form: str):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8")

    def value(self, kind: int, whole: bool):
        """One metadata value; an array, unless it is wanted whole, is skipped and told as its length."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ModelError(f"{self.path} is damaged: metadata of unknown type {kind}")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if count > MAX_ARRAY or (element not in SCALARS and element != STRING):
            raise ModelError(f"{self.path} is damaged: metadata array of {count} values of type {element}")
        if whole:
            return [self.string() if element == STRING else self.scalar(SCALARS[element]) for _ in range(count)]
        if element in SCALARS:
            self.take(count * struct.calcsize(SCALARS[element]))
        else:
            for _ in range(count):
                self.take(self.scalar("<Q"))
        return count

    def tensor(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """Shape in torch's order (ggml's runs the other way), block format, offset into the data."""
        dimensions = self.scalar("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ModelError(f"{self.path} is damaged: {name} has {dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(dimensions))[::-1]
        return shape, self.scalar("<I"), self.scalar("<Q")

    def placed(self, name: str, data_start: int, shape: tuple[int, ...], kind: int, offset: int) -> TensorEntry:
        import gguf

        if kind not in {known.value for known in gguf.GGML_QUANT_SIZES}:
            raise ModelError(f"{self.path} stores {name} in block format {kind}, which cannot be read")
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        size = prod(shape) // per_block * block_bytes
        if shape[-1] % per_block or data_start + offset + size > len(self.data):
            raise ModelError(f"{self.path} is cut off or damaged: {name} {list(shape)} does not lie within the file")
        return TensorEntry(shape, kind, data_start + offset, size)
