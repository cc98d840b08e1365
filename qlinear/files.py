"""Small files that are whole or not there. Part of the ground floor, which every room may import."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
    """`write_whole` of a text in UTF-8, its line ends as they are."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def is_written_through(path: Path) -> bool:
    """Whether `path` is a link, a pipe or a terminal (/dev/stdout is one): no file may be put in its place."""
    return path.is_symlink() or (path.exists() and not path.is_file())
