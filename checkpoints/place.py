"""Where a checkpoint may go: what stands there is ours, holds nothing of the user's, and is not what is quantized."""

import shutil
from pathlib import Path

from checkpoints.recipes import RECIPE, read_recipe
from qlinear.errors import CheckpointError


def resolved(directory: Path) -> Path:
    """The directory itself, whatever links lead to it. Raises `CheckpointError` for links that lead nowhere."""
    try:
        return directory.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name with a zero byte in it
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"`output` {str(directory)!r} names no directory: {reason}") from error


def refuse_what_is_not_ours(directory: Path, source: tuple[Path, ...]) -> None:
    """Raise `CheckpointError` for something that this program did not make, or a directory that holds such.

    source: the files of the model that is quantized, which may lie anywhere but in what is replaced.
    """
    try:
        if not directory.exists():
            return
    except OSError as error:
        raise CheckpointError(f"cannot write to {directory}: {error.strerror}") from error
    if not (directory / RECIPE).is_file():
        raise CheckpointError(
            f"{directory} is there already and no checkpoint made by this program; give another `output`"
        )
    place = directory.resolve()
    for file in source:
        if file.resolve().is_relative_to(place) or file.absolute().parent.resolve().is_relative_to(place):
            raise CheckpointError(
                f"{directory} holds {file.name}, a file of the model that is read; give another `output`"
            )
    known = read_recipe(directory).get("files")
    if not isinstance(known, list):  # an older version did not say
        return
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name not in known and not (path.is_dir() and not path.is_symlink()):
            raise CheckpointError(
                f"{directory} holds {name}, which this program did not put there; move it away, or give another "
                f"`output`"
            )


def check_space(folder: Path, needed: int, label: Path) -> None:
    """Raise `CheckpointError` if `needed` bytes do not fit on the disk that `folder` is on."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{label} needs {needed / 1e9:.3g} GB of disk and {free / 1e9:.3g} GB are free; free some, or give another "
            f"`output`"
        )
