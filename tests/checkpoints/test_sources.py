"""Tensors lent out of safetensors files, byte by byte, and files that such a reader must not believe."""

import json
import mmap
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.sources import SafetensorsShards
from qlinear.errors import ModelError

PAGE = mmap.ALLOCATIONGRANULARITY


def write(path: Path, *entries: tuple[str, str, list[int], bytes]) -> Path:
    """A safetensors file with (name, type, shape, bytes) one after the other, by the format's definition."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, kind, shape, content in entries:
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    described = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(described)) + described + data)
    return path


def read(file: Path, name: str) -> torch.Tensor:
    with SafetensorsShards((file,)).borrow(name) as tensor:
        return tensor.clone()


DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_as_the_official_writer_stores_it(tmp_path, name):
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 2, (3, 5, 8 * dtype.itemsize), dtype=torch.uint8, generator=generator).view(dtype)
    save_file({"a": torch.ones(7), "b": tensor}, tmp_path / "m.safetensors")
    found = read(tmp_path / "m.safetensors", "b")
    assert found.dtype == dtype and found.shape == (3, 5, 8)
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("before", [0, 1, 3, 4, PAGE - 1, PAGE, 2 * PAGE + 2])
@pytest.mark.parametrize("shape", [(), (1,), (5, 0), (2, 3), (40, 64)])
def test_wherever_it_lies(tmp_path, before, shape):
    numbers = list(range(torch.Size(shape).numel()))
    content = struct.pack(f"<{len(numbers)}i", *numbers)
    last = ("c", "U8", [1], b"\xff")
    file = write(tmp_path / "m", ("a", "U8", [before], bytes(before)), ("b", "I32", list(shape), content), last)
    found = read(file, "b")
    assert found.dtype == torch.int32 and found.shape == shape and found.flatten().tolist() == numbers
    assert read(file, "c").tolist() == [255] and read(file, "a").numel() == before


def test_names_come_in_order_and_what_is_lent_is_not_the_file(tmp_path):
    file = write(tmp_path / "m", ("z", "I8", [2], b"\x01\x02"), ("a", "I8", [1], b"\x03"))
    source = SafetensorsShards((file,))
    assert list(source.shapes.items()) == [("a", (1,)), ("z", (2,))]
    before = file.read_bytes()
    with source.borrow("z") as tensor:
        tensor.fill_(9)
    assert file.read_bytes() == before and read(file, "z").tolist() == [1, 2]


def test_a_type_that_torch_has_no_place_for(tmp_path):
    file = write(tmp_path / "m", ("a", "F8_E8M0", [2], b"12"))
    with pytest.raises(ModelError, match="a is stored as F8_E8M0, which is not read here"):
        read(file, "a")


def test_a_file_cut_short_after_it_was_listed(tmp_path):
    file = write(tmp_path / "m", ("a", "U8", [3 * PAGE], bytes(3 * PAGE)))
    source = SafetensorsShards((file,))
    file.write_bytes(file.read_bytes()[:PAGE])
    with pytest.raises(ModelError, match="m: a cannot be read: ") as error, source.borrow("a"):
        pass
    assert "\n" not in str(error.value)
