"""Small files that are whole or not there. Part of the ground floor, which every room may import."""

import ctypes
import json
import math
import os
import secrets
import sys
import tempfile
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from qlinear.errors import one_line

# Of <fcntl.h> and <stdio.h>.
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def is_text(text: str) -> bool:
    """Whether it can be kept as UTF-8 and holds no control characters, as a name of a file may."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Have `write` fill a file beside `path`, then give it that name; a link, a pipe or a terminal is written through.

    The file beside it has a name of its own, so that two processes may write at once: the last one to end is read.
    Nothing is left of it where `write` fails. Raises `OSError`.
    """
    if is_written_through(path):
        with open(path, "wb") as file:
            write(file)
        return
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    with open(partial, "xb") as file:
        try:
            write(file)
            file.close()  # a disk may turn out to be full only now
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8, its line ends as they are; bytes of a file's name that are none are spelled."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def is_written_through(path: Path) -> bool:
    """Whether `path` is a link, a pipe or a terminal (/dev/stdout is one): no file may be put in its place."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def exchange(one: Path, other: Path) -> bool:
    """Give each the other's name, in one step: there is no instant at which either name stands for nothing.

    Returns False, with both as they were, where the system or the file system has no such step.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            return ctypes.CDLL(None).renamex_np(*names, _RENAME_SWAP) == 0
        renameat2, here = ctypes.CDLL(None).renameat2, _AT_FDCWD
        return renameat2(here, names[0], here, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0
    except (AttributeError, OSError, TypeError):  # a C library without it; Windows
        return False


def why_not_writable(path: Path, makes_folder: bool = False) -> str | None:
    """Why no file can be written at `path`, in words, as far as can be told before; None where it can.

    makes_folder: whether the folder is made if there is none.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
        real = path.resolve() if path.is_symlink() else path.absolute()  # it is written through a link
        if real.is_dir():
            return "that is a directory"
        folder = next(folder for folder in real.parents if folder.exists())
        if not folder.is_dir():
            return f"{folder} is no directory"
        if folder != real.parent and (path.is_symlink() or not makes_folder):
            return f"there is no directory {real.parent}"
        special = path.exists() and not path.is_file()  # what a link of /proc leads to has no name of its own
        if not os.access(path if special else folder, os.W_OK):
            return f"no writing in {folder}"
        if not special:  # there are file systems that let root do anything, and nothing is done
            tempfile.TemporaryFile(dir=folder).close()
        return None
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a zero byte
        return getattr(error, "strerror", None) or one_line(error)


def json_text(value: Any, indent: int | None = 2, sort_keys: bool = False) -> str:
    """The JSON of a value, with null for every number that is none, or beyond all: the format has no word for them."""
    return json.dumps(_finite(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
