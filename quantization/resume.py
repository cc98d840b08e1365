"""A run that was stopped and is taken up again: what has to be the same, and how the user is told."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version

from checkpoints.journal import Journal
from qlinear.progress import Note
from qlinear.version import __version__
from quantization.plan import Job
from quantization.recipe import Awq, Recipe
from quantization.scaling import Scaling
from quantization.streams import Streams

# Fields of a recipe that count by what they come to.
_BY_MEANING = ("group_size", "awq", "scales", "calib_data", "flash_attention")


def versions() -> dict[str, str]:
    """Of this program and the packages that the weights depend on."""
    return {"run-awq": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def marks(job: Job, scaling: Scaling) -> dict[str, str | int | bool | None]:
    """All that the weights depend on but the calibration text, by the names the user knows it by."""
    recipe = job.recipe
    plain = {f"`{name}`": value for name, value in recipe.to_json().items() if name not in _BY_MEANING}
    loaded = scaling.awq is Awq.LOAD
    return {
        "the model of fingerprint": job.source.fingerprint[:16],
        **plain,
        "`group_size`": job.plan.group_size,
        "`awq`": scaling.awq.value,
        "`scales` of sha256": _sha256(scaling.path.read_bytes()) if loaded else None,
        "`calib_data`": os.path.basename(recipe.calib_data),
        "`flash_attention`": bool(recipe.flash_attention),
        **versions(),
    }


def text_marks(streams: Streams) -> dict[str, str | None]:
    """The calibration text, and what was made of it."""
    return {
        "calibration text of sha256": streams.meta["sha256"],
        "calibration tokens of sha256": _sha256(streams.tokens.numpy().tobytes()),
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def as_it_began(recipe: Recipe, journal: Journal) -> Recipe:
    """The recipe with `auto` settled as it was when the run began, whatever scales there are by now."""
    if recipe.awq is not Awq.AUTO:
        return recipe
    return replace(recipe, awq=journal.fingerprint.get("`awq`", Awq.AUTO))


@contextmanager
def told_if_stopped(journal: Journal, job: Job) -> Iterator[None]:
    """Whatever ends the work inside, say what is left of it."""
    try:
        yield
    except BaseException:
        if journal.record:
            done = f"{journal.record['tally']['units']} of {len(job.plan.units)} blocks are kept"
            job.watch(
                Note(
                    f"stopped; {done}, and the same again with `resume` goes on from there (without it, it starts over)"
                )
            )
        raise
