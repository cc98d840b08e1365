"""Where the tensors of a model lie on disk: one reader per file format, one tensor at a time.

A source lends a tensor out and takes its pages back when it returns: a mapped file counts as resident memory for as
long as it stays mapped, and a 13.5 GB model is read here within a few hundred MB.
"""

import hashlib
import json
import mmap
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from checkpoints.local import sample
from qlinear.errors import ModelError, is_out_of_memory, one_line
from qlinear.grid import is_dense

# What a float tensor may be stored as; eight bits are another format's.
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class TensorSource(Protocol):
    """files: every weight file; shapes: stored name -> shape, known without reading a weight."""

    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor]:
        """The stored tensor, valid until the block ends; it may be a view of the file, and is not to be written to."""
        ...

    def names_in(self, model: torch.nn.Module) -> dict[str, str] | None:
        """Stored name -> name of the model's parameter or buffer, or its own name; None: as transformers has it."""
        ...


@contextmanager
def one_line_errors(what: str):
    """Turn any failure of a library over the user's files into a `ModelError` of one line that starts with `what`.

    Wide on purpose: tokenizers and the validators of configurations raise bare `Exception`s.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # nothing is wrong with the file
            raise
        raise ModelError(f"{what}: {one_line(error)}") from error


def is_finite(tensor: Tensor) -> bool:
    """Whether a float tensor holds neither infinity nor NaN: one vectorized pass."""
    if tensor.dtype not in FLOATS:  # of eight bits, which few operations know
        tensor = tensor.float()
    ends = torch.aminmax(tensor) if tensor.numel() else ()
    return all(end.isfinite() for end in ends)  # a NaN anywhere makes both ends NaN


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises `ModelError` when it cannot be read or is not an object."""
    with one_line_errors(f"{path} cannot be read"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__} where a JSON object is needed")
    return value


class Shards(ABC):
    """What the formats of a model directory share. file_of: stored name -> the shard that holds it."""

    def __init__(self, files: tuple[Path, ...]):
        self.files = files
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.file_of: dict[str, Path] = {}
        for file in files:
            for name, shape in self._list(file).items():
                if name in self.file_of:
                    raise ModelError(f"{name} is stored twice: in {self.file_of[name].name} and in {file}")
                self.file_of[name], self.shapes[name] = file, shape

    @abstractmethod
    def _list(self, file: Path) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what one shard holds."""

    def names_in(self, model: torch.nn.Module) -> None:
        return None


# The names that a safetensors header has for element types.
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip


class SafetensorsShards(Shards):
    """A safetensors checkpoint: the official reader checks each header once, then every tensor is mapped by itself."""

    def __init__(self, files: tuple[Path, ...]):
        self._places: dict[str, tuple[str, int, int]] = {}  # dtype as the header calls it; first byte in the file; end
        super().__init__(files)

    def _list(self, file: Path) -> dict[str, tuple[int, ...]]:
        """Read a header: its length in 8 bytes, then JSON with the type, shape and place of every tensor."""
        from safetensors import safe_open

        with one_line_errors(f"{file} is not a whole safetensors file"):
            with safe_open(file, framework="pt"), file.open("rb") as stored:
                header = json.loads(stored.read(int.from_bytes(stored.read(8), "little")))
                data = stored.tell()
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            self._places[name] = entry["dtype"], data + begin, data + end
        return {name: tuple(header[name]["shape"]) for name in sorted(header)}

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor]:
        stored_as, begin, end = self._places[name]
        dtype, file = SAFETENSORS_DTYPES.get(stored_as), self.file_of[name]
        if dtype is None:
            raise ModelError(f"{file}: {name} is stored as {stored_as}, which is not read here")
        with one_line_errors(f"{file}: {name} cannot be read"):
            tensor = _map(file, begin, end, dtype)
        yield tensor.view(self.shapes[name])


def _map(file: Path, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """Bytes `begin` to `end` of a file as a flat tensor, mapped for as long as the tensor lives."""
    if begin == end:  # which cannot be mapped
        return torch.empty(0, dtype=dtype)
    start = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with file.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), end - start, access=mmap.ACCESS_COPY, offset=start)
    stored = torch.frombuffer(pages, dtype=torch.uint8, offset=begin - start)
    if begin % dtype.itemsize:  # nothing in the format forbids it; numbers have to lie at multiples of their size
        stored = stored.clone()
    return stored.view(dtype)


class PickleShards(Shards):
    """An old `pytorch_model.bin` checkpoint: tensors only, nothing else in a pickle is ever run."""

    @staticmethod
    def _load(file: Path) -> dict[str, Tensor]:
        with one_line_errors(f"{file} cannot be read as plain tensors (save the model as safetensors)"):
            # The form of before torch 1.6 is no zip file, and cannot be mapped.
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise ModelError(f"{file} is not a table of tensors; save the model as safetensors")
        odd = next((name for name, tensor in tensors.items() if not is_dense(tensor)), None)
        if odd is not None:
            raise ModelError(f"{file} holds {odd} in another form than dense; save the model as safetensors")
        return tensors

    def _list(self, file: Path) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._load(file).items()}

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor]:
        yield self._load(self.file_of[name])[name]


# (file of an unsharded checkpoint, index of a sharded one, its reader), the preferred format first.
FORMATS: tuple[tuple[str, str, type[Shards]], ...] = (
    ("model.safetensors", "model.safetensors.index.json", SafetensorsShards),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", PickleShards),
)


def holds_weights(directory: Path) -> bool:
    """Whether there are any, whole or not."""
    return any((directory / name).is_file() for single, index, _ in FORMATS for name in (single, index))


class NoWeights:
    """Of a model that is known by its configuration alone."""

    files: tuple[Path, ...] = ()
    shapes: dict[str, tuple[int, ...]] = {}


def open_directory(directory: Path) -> TensorSource:
    """The weights in a model directory.

    Raises `ModelError` when there are none, a shard is missing, damaged or outside the directory, or the index and
    the shards disagree.
    """
    for single, index, reader in FORMATS:
        if (directory / single).is_file():
            return reader((directory / single,))
        if (directory / index).is_file():
            file_of = _read_index(directory / index)
            source = reader(tuple(directory / file for file in sorted(set(file_of.values()))))
            for name, file in file_of.items():
                if source.file_of.get(name) != directory / file:
                    raise ModelError(f"{directory / index} places {name} in {file}, which does not hold it")
            return source
    tried = ", ".join(name for single, index, _ in FORMATS for name in (single, index))
    raise ModelError(f"{directory} holds no weights (none of {tried})")


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, every one a plain name of a file that is there."""
    file_of = read_json(path).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise ModelError(f"{path} has no weight_map; the checkpoint is incomplete")
    for file in {str(file) for file in file_of.values()}:
        # An index comes with the model: it may not point at other files of this machine.
        if not re.fullmatch(r"[\w(+-][\w()+. -]{0,200}", file):
            raise ModelError(f"{path} points to {file[:200]!r}; only plain file names beside it are read")
        if not (path.parent / file).is_file():
            raise ModelError(f"{path} names {file}, which is not there; the checkpoint is incomplete")
    return {name: str(file) for name, file in file_of.items()}


def fingerprint(config, files: tuple[Path, ...]) -> str:
    """sha256 (hex) over a configuration and, of every weight file, its name, its size and a sample of its bytes."""
    described = config.to_dict()
    for passing in ("transformers_version", "_name_or_path"):
        described.pop(passing, None)
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for path in files:
        digest.update(os.fsencode(path.name) + f" {path.stat().st_size}".encode())
        for part in sample(path):
            digest.update(part)
    return digest.hexdigest()
