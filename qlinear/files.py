"""Small files that are whole or not there. Part of the ground floor, which every room may import."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a file beside `path`, then give it that name; a link, a pipe or a terminal is written through.

    Nothing is left beside `path` where `write` fails.
    """
    if is_written_through(path):
        write(path)
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8, its line ends as they are."""
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8", newline=""))


def is_written_through(path: Path) -> bool:
    """Whether `path` is a link, a pipe or a terminal (/dev/stdout is one): no file may be put in its place."""
    return path.is_symlink() or (path.exists() and not path.is_file())
