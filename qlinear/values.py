"""Values that a caller gives, held to their kinds. Part of the ground floor, which every room may import."""

import numbers
from typing import Any

from qlinear.errors import OptionError


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise `OptionError` for what is no whole number from `least` up; 4.0 and True are none."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise OptionError(f"`{name}={value!r}` has to be a whole number from {least} up")


def check_number(name: str, value: Any) -> None:
    """Raise `OptionError` for what is no number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise OptionError(f"`{name}={value!r}` has to be a number")


def check_words(name: str, value: Any) -> None:
    """Raise `OptionError` for what is no text."""
    if not isinstance(value, str):
        raise OptionError(f"`{name}` has to be a text, not {type(value).__name__}")
