"""A run that was stopped and is taken up again: what has to be the same, and how the user is told."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version

from awq_cli import __version__
from awq_cli.tasks.calibrating import Calibration
from awq_cli.tasks.plan import Plan
from awq_cli.tasks.progress import Progress
from awq_cli.tasks.scaling import Scaling
from checkpoints.journal import Journal
from checkpoints.pretrained import PretrainedModel

# Options that change no byte of the weights, and options that count by what they come to.
_FREE = ("output", "overwrite", "resume", "trust_remote_code")
_BY_MEANING = ("model_name", "group_size", "awq", "scales", "calib_data", "flash_attention")


def versions() -> dict[str, str]:
    """Of this program and the packages that checkpoints depend on."""
    packages = ("torch", "transformers", "compressed-tensors")
    return {"run-awq": __version__, **{name: version(name) for name in packages}}


def marks(request, source: PretrainedModel, plan: Plan, scaling: Scaling) -> dict[str, str | int | bool | None]:
    """All that the weights depend on but the calibration text, by the names the user knows it by."""
    options = {f"--{name}": value for name, value in asdict(request).items() if name not in _FREE + _BY_MEANING}
    return {
        "the model of fingerprint": source.fingerprint[:16],
        **options,
        "--group_size": plan.group_size,
        "--awq": scaling.mode,
        "--scales of sha256": _sha256(scaling.path.read_bytes()) if scaling.mode == "load" else None,
        "--calib_data": os.path.basename(request.calib_data),
        "--flash_attention": bool(request.flash_attention),
        **versions(),
    }


def text_marks(calibration: Calibration) -> dict[str, str | None]:
    """The calibration text, and what was made of it."""
    return {
        "calibration text of sha256": calibration.meta["sha256"],
        "calibration tokens of sha256": _sha256(calibration.tokens.numpy().tobytes()),
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def as_it_began(request, journal: Journal):
    """The request with `--awq auto` settled as it was when the run began, whatever scales there are by now."""
    return replace(request, awq=journal.fingerprint.get("--awq", "auto")) if request.awq == "auto" else request


@contextmanager
def told_if_stopped(journal: Journal, n_units: int, progress: Progress) -> Iterator[None]:
    """Whatever ends the work inside, say what is left of it."""
    try:
        yield
    except BaseException:
        if journal.record:
            progress.note(
                f"stopped; {journal.record['tally']['units']} of {n_units} blocks are kept, and the same command with "
                f"--resume goes on from there (without it, it starts over)"
            )
        raise
