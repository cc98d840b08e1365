"""What a user can cause, as exceptions. Part of the ground floor, which every room may import.

A message names the value, the limit it broke and what to do next, in one line. What to do next is a field of the
Python API in backquotes, `` `overwrite` `` or `` `awq=none` ``; the command shows it as the option it is, `--overwrite`
or `--awq none`, and exits with status 2.
"""

LONGEST = 1200  # letters of a message: a name out of a file may have any number, and lines


class AwqError(Exception):
    """Anything the user can cause and mend. Its message is one line, whatever is asked for."""

    def __init__(self, message: str):
        super().__init__(_without_middle(" ".join(message.splitlines()), LONGEST))


class GridError(AwqError):
    """A bit width or group size that a weight cannot be put on."""


class ModelError(AwqError):
    """A float model that cannot be found, opened or understood."""


class CheckpointError(AwqError):
    """A quantized checkpoint that is missing, damaged or in the way."""


class ScalesError(AwqError):
    """A scales file that cannot be read or does not belong to the model."""


class CalibrationError(AwqError):
    """Calibration text that is missing, unreadable or too short."""


class TargetError(AwqError):
    """A target that this machine does not have."""


class OptionError(AwqError):
    """A value out of range, or values that contradict each other or what is asked for."""


class RankError(AwqError):
    """Another of several processes that work together has ended, or they cannot find each other."""


class UntoldError(AwqError):
    """What another process tells of: this one ends without a word."""


def _without_middle(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    left = (longest - 5) // 2
    return f"{text[:left]} ... {text[-left:]}"


def one_line(error: BaseException) -> str:
    """What a library says of a failure, in one line of bounded length; the failure's kind where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it was memory that could not be had: Python, the system, torch and C++ each say so in their own way."""
    said = str(error).lower()
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "bad allocation")
    words += ("could not create a primitive",)  # oneDNN's word for it
    return isinstance(error, MemoryError) or any(each in said for each in words)
