"""Values that a caller gives, held to their kinds. Part of the ground floor, which every room may import."""

import numbers
import os
from collections.abc import Collection
from typing import Any

from qlinear.errors import OptionError

LONGEST_NAME = 255  # bytes, of all file systems in use


def plain(value: Any) -> Any:
    """One of numpy's numbers as Python's own, which does not overflow."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value


def check_whole(name: str, value: Any, least: int) -> int:
    """A whole number as Python's own. Raises `OptionError` for none from `least` up; 4.0 and True are none."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise OptionError(f"`{name}={value!r}` has to be a whole number from {least} up")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """A number as Python's own. Raises `OptionError` for what is none, or larger than any that a computer has."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise OptionError(f"`{name}={value!r}` has to be a number")
    try:
        return float(value)
    except OverflowError as error:
        raise OptionError(f"`{name}` is a number of {len(str(value))} digits; give a smaller one") from error


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> Any:
    """One of some values, of its type. Raises `OptionError` for any other: 4.0 and True are no numbers of bits."""
    value = plain(value)
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        choices = [str(choice) for choice in allowed if choice is not None]
        told = repr(value) if str(value) in choices else value
        raise OptionError(f"`{name}={told}` is not one of {', '.join(choices)}")
    return value


def check_switch(name: str, value: Any) -> bool:
    """Raises `OptionError` for what is neither True nor False."""
    return check_choice(name, value, (False, True))


def check_path(name: str, value: Any) -> str:
    """A name or path as text. Raises `OptionError` for what is neither, a recipe in the place of the output say."""
    if not isinstance(value, str | os.PathLike):
        raise OptionError(f"`{name}` has to be a name or a path, not {type(value).__name__}")
    return os.fspath(value)


def check_name(name: str, value: Any) -> str:
    """The same of what is to be read. Raises for what can be no name of a file, too."""
    path = check_path(name, value)
    if "\0" in path:
        raise OptionError(f"`{name}={path[:200]!r}` has a character that no name of a file may have")
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in path.split(os.sep)):
        raise OptionError(f"{path[:60]}...: File name too long")
    return path


def check_words(name: str, value: Any) -> None:
    """Raise `OptionError` for what is no text."""
    if not isinstance(value, str):
        raise OptionError(f"`{name}` has to be a text, not {type(value).__name__}")
