"""Proof that a checkpoint may be opened at hand: that what its files say, read as they lie, is what `transformers`
makes of them.

The first opening that goes the long way compares the two. What was compared is marked, in the checkpoint's own record
or in the user's cache, and the mark holds for as long as no file changes that has to do with it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.plain_tokenizer import agrees
from checkpoints.recipes import read_recipe
from qlinear.cache import cache_directory

if TYPE_CHECKING:
    from torch import nn

# (the fields of config.json, those of generation_config.json or None, the model) -> whether they describe that model.
Alike = Callable[[Mapping[str, Any], Mapping[str, Any] | None, "nn.Module"], bool]

RULES = b"1"  # another number where what is compared, or how files are read at hand, has changed
# What says what a model or a tokenizer is, wherever it was found to matter; and the templates of older checkpoints.
READ = (
    "config.json generation_config.json quantize_config.json quant_config.json model.safetensors.index.json "
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt vocab.txt "
    "chat_template.jinja chat_template.json processor_config.json preprocessor_config.json additional_chat_templates"
).split()
PIECE = 1 << 20
MOST_HEADER = 100 << 20  # as the format has it


def mark(directory: Path) -> str:
    """sha256 (hex) of all that says what the tensors of a directory mean: they themselves are not read.

    Raises `OSError`, and for a file of tensors that is none.
    """
    found = hashlib.sha256(RULES)
    for file in sorted(directory.iterdir()):
        tensors = file.suffix == ".safetensors" and file.is_file()
        if not tensors and file.name not in READ and file.suffix != ".model":
            continue
        found.update(b"\0" + os.fsencode(file.name) + b"\0")
        if tensors:
            found.update(_header(file))
        elif file.is_file():
            with file.open("rb") as opened:
                while piece := opened.read(PIECE):
                    found.update(piece)
    return found.hexdigest()


def _header(file: Path) -> bytes:
    """Names, types, shapes and places of its tensors."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > min(MOST_HEADER, file.stat().st_size):
            raise OSError(f"{file} is damaged")
        return opened.read(size)


def proof(directory: Path, tokenizer: Any, model: "nn.Module", alike: Alike) -> str | None:
    """The mark of a directory that was opened the long way, if at hand it is the same; else None.

    tokenizer, model: what was made of it.
    """
    with suppress(Exception):  # of whatever kind: then it is not
        generation = directory / "generation_config.json"
        config, of_writing = _fields(directory / "config.json"), _fields(generation) if generation.is_file() else None
        if alike(config, of_writing, model) and agrees(directory, tokenizer):
            return mark(directory)
    return None


def _fields(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def is_proven(directory: Path) -> bool:
    """Whether a mark is kept that still holds."""
    with suppress(OSError):
        found, kept = mark(directory), _place()
        return read_recipe(directory).get("proof") == found or (kept is not None and (kept / found).exists())
    return False


def remember(proven: str | None) -> None:
    """Keep a mark for the next time, where there is a place for it."""
    kept = _place()
    if proven is not None and kept is not None:
        with suppress(OSError):
            kept.mkdir(parents=True, exist_ok=True)
            (kept / proven).touch()


def _place() -> Path | None:
    cache = cache_directory()
    return None if cache is None else cache / "proven"
