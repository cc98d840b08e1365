"""A text of the user's."""

from pathlib import Path

from qlinear.errors import AwqError


def read_file(path: Path, what: str, kind: type[AwqError], instead: str = "") -> str:
    """The UTF-8 text in a file. Raises `kind` in one line that starts with `what`; instead: what else it might be."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise kind(f"{what}: no such file{instead}") from error
    except OSError as error:
        raise kind(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise kind(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # not even a path
        raise kind(f"{what} cannot be read: {error}") from error
