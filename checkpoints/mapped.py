"""A safetensors checkpoint as arrays of numpy's over the mapped files: without torch, and without a copy."""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.formats.in_bytes import PARTS, SCALES, WORDS, from_bytes, shape_of
from qlinear.backends.stack import Unsupported

# Element types of a safetensors header, bfloat16 as the uint16 of its bits.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32}


@dataclass(frozen=True)
class Stored:
    """One tensor: its bytes in a mapped file."""

    pages: mmap.mmap
    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def array(self) -> np.ndarray:
        """A view, not to be written to. Raises `Unsupported` for a type that is not read so, or one that lies askew."""
        dtype = DTYPES.get(self.dtype)
        if dtype is None or self.begin % np.dtype(dtype).itemsize:
            raise Unsupported(f"a tensor is stored as {self.dtype} at byte {self.begin}")
        count = (self.end - self.begin) // np.dtype(dtype).itemsize
        return np.frombuffer(self.pages, dtype, count, self.begin).reshape(self.shape)

    def release(self) -> None:
        """Give the pages back that lie whole in it: what has been laid out elsewhere counts twice until then."""
        first = -(-self.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = self.end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED, first, length)


@dataclass(frozen=True)
class StoredBytes:
    """A matrix of bfloat16 that is stored as bytes (`checkpoints.formats.in_bytes`)."""

    words: Stored
    scales: Stored
    shape: tuple[int, ...]

    @classmethod
    def taken_from(cls, tensors: dict[str, Stored], name: str, group_size: int) -> "StoredBytes":
        """Takes the parts of the matrix of that name out of all that is stored. Raises `Unsupported` for another."""
        shape = shape_of(name, group_size, {stored: tensor.shape for stored, tensor in tensors.items()})
        if shape is None or tensors[f"{name}.{WORDS}"].dtype != "I32" or tensors[f"{name}.{SCALES}"].dtype != "BF16":
            raise Unsupported(f"{name} is not stored as bytes")
        words, scales, _ = (tensors.pop(f"{name}.{part}") for part in PARTS)
        return cls(words, scales, shape)

    @property
    def array(self) -> np.ndarray:
        """As the uint16 of its bits: in memory of its own, so what it was made of is let go of."""
        made = from_bytes(self.words.array, self.scales.array)
        self.release()
        return made

    def release(self) -> None:
        self.words.release()
        self.scales.release()


def map_directory(directory: Path) -> tuple[dict[str, Stored], int]:
    """Name -> tensor of all files of a directory, and the bytes of the files.

    Raises `Unsupported` for what is no whole checkpoint of plain safetensors files, `OSError` for what cannot be read.
    """
    files = _files(directory)
    found: dict[str, Stored] = {}
    for file in files:
        tensors = _map_file(file)
        if tensors.keys() & found.keys():
            raise Unsupported("a tensor is stored twice")
        found |= tensors
    return found, sum(file.stat().st_size for file in files)


def _files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise Unsupported("the index names files elsewhere")
    return [directory / name for name in sorted(names)]


def _map_file(file: Path) -> dict[str, Stored]:
    """The official reader checks the header: places within the file, none over another."""
    from safetensors import safe_open

    with safe_open(file, framework="np"), file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = Stored(pages, 8 + size + begin, 8 + size + end, entry["dtype"], tuple(entry["shape"]))
    return found
