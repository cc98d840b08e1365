"""Fields of the Python API, as messages name them, in the command's spelling."""

import re

from awq_cli import groups


def as_options(text: str) -> str:
    """`` `overwrite` `` becomes `--overwrite`, `` `awq=none` `` `--awq none`; what is no option loses its quotes.

    `` `chat=False` `` becomes the option that says so, `--raw`.
    """

    def spelled(match: re.Match) -> str:
        name, value = match[1], match[2]
        if value == "False" and name in groups.NEGATIONS:
            return groups.NEGATIONS[name]
        option = groups.NAMES.get(name, name)
        return option if value is None else f"{option} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", spelled, text)


def printable(text: str) -> str:
    """What a terminal shows and does not obey: a message may name what a file holds."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
