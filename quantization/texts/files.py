"""A text of the user's."""

from pathlib import Path

from qlinear.errors import AwqError

# A device may have no end, and a text of this size takes an hour to be made tokens of.
MOST_BYTES = 10**9
# What came out of pipes, by their names: it is there to be read once.
_PIPED: dict[Path, str] = {}


def read_file(path: Path, what: str, kind: type[AwqError], instead: str = "") -> str:
    """The UTF-8 text in a file, with line feeds for any line ends. Raises `kind` in one line that starts with `what`.

    instead: what else the name might have been.
    """
    if path in _PIPED:
        return _PIPED[path]
    try:
        with open(path, "rb") as file:
            content = bytearray()  # as it is found: to read so many at once would take so much memory first
            while len(content) <= MOST_BYTES and (piece := file.read(1 << 20)):
                content += piece
        if len(content) > MOST_BYTES:
            raise kind(f"{what} has more than {MOST_BYTES / 1e9:g} GB of text, which is not read; give a part of it")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        if text.count("\0") * 4 > len(text):  # which is valid UTF-8
            raise kind(f"{what} seems to be UTF-16, every other byte is 0; save it as UTF-8")
        return _PIPED.setdefault(path, text) if path.is_fifo() else text
    except FileNotFoundError as error:
        raise kind(f"{what}: no such file{instead}") from error
    except OSError as error:
        raise kind(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise kind(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # not even a path
        raise kind(f"{what} cannot be read: {error}") from error
