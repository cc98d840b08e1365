"""A run that was stopped and is taken up again: what has to be the same, and how the user is told."""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from checkpoints.formats.compressed_tensors import weight_parts
from checkpoints.formats.in_bytes import PARTS as BYTE_PARTS
from checkpoints.journal import Journal
from qlinear.errors import CheckpointError
from qlinear.grid import Grid
from qlinear.progress import Note
from qlinear.sizes import BITS, GROUP_SIZES
from qlinear.version import __version__
from quantization.plan import Job
from quantization.recipe import Awq, Recipe
from quantization.scaling import Scaling
from quantization.streams import Streams
from quantization.tally import Tally

# The mark of the model itself.
MODEL = "the model of fingerprint"
# Fields of a recipe that count by what they come to.
_BY_MEANING = ("group_size", "awq", "scales", "calib_data", "flash_attention")


def versions() -> dict[str, str]:
    """Of this program and the packages that the weights depend on."""
    return {"run-awq": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def marks(job: Job, scaling: Scaling) -> dict[str, str | int | float | bool | None]:
    """All that the weights depend on but the calibration text, by the names the user knows it by."""
    recipe = job.recipe
    plain = {f"`{name}`": value for name, value in recipe.to_json().items() if name not in _BY_MEANING}
    loaded = scaling.awq is Awq.LOAD
    return {
        MODEL: job.source.fingerprint[:16],
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


def refuse_another_run(journal: Journal, job: Job, output: Path) -> None:
    """Raise `CheckpointError` where a run would take the place of what another model's run to `output` has left."""
    ours = job.source.fingerprint[:16]
    theirs = journal.replaced.get(MODEL, ours)
    if theirs != ours:
        raise CheckpointError(
            f"a run that stopped has left its progress for {output}, of a model of fingerprint {theirs}, not {ours}; "
            f"give another `output`, or remove {journal.directory}"
        )


def as_it_began(recipe: Recipe, journal: Journal) -> Recipe:
    """The recipe with `auto` settled as it was when the run began, whatever scales there are by now."""
    if recipe.awq is not Awq.AUTO:
        return recipe
    return replace(recipe, awq=journal.fingerprint.get("`awq`", Awq.AUTO))


def kept_grids(journal: Journal, job: Job) -> dict[str, Grid] | None:
    """Those that an earlier run has chosen, None where it has not. Raises `CheckpointError` if they make no sense."""
    if not journal.record or not job.recipe.mixed:
        return None
    journal.identify({MODEL: job.source.fingerprint[:16], "`bits_per_weight`": job.recipe.bits_per_weight})
    with journal.reading():
        found = {name: Grid(bits, size, job.recipe.symmetric) for name, (bits, size) in journal.record["grids"].items()}
        wrong = [grid for grid in found.values() if grid.bits not in BITS or grid.group_size not in GROUP_SIZES]
        if wrong or not set(found) <= {name for name, _ in job.source.model.named_modules()}:
            raise ValueError("grids of other layers")
    return found


def check_tally(tally: Tally, job: Job, stored: set[str]) -> None:
    """Raise `ValueError` unless what is told of the model so far is what can have become of it.

    stored: the names of the tensors that are written.
    """
    plan, state = job.plan, job.source.model.state_dict()
    if job.in_bytes is not None:
        weight = job.source.name_in_files(job.in_bytes)
        parts = {f"{weight.removesuffix('weight')}{part}" for part in BYTE_PARTS}
        stored = stored | {weight} if parts <= stored else stored - {weight}
    if type(tally.units) is not int or not 0 < tally.units <= len(plan.units):
        raise ValueError(f"{tally.units} of {len(plan.units)} blocks are done")
    done, ahead = plan.units[: tally.units], plan.units[tally.units :]
    quantized = set(tally.quantized_names)
    for name in tally.quantized_names:
        base = job.source.linear_in_files(name)
        missing = {f"{base}.{part}" for part in weight_parts(job.recipe.symmetric)} - stored
        if missing or not (name == plan.head or _is_in(done, name)):
            raise ValueError(f"{name} is not quantized")
    for name in state.keys() & tally.written:
        owner = name.rpartition(".")[0]
        if job.source.name_in_files(name) not in stored and not any(_is_in((owner,), layer) for layer in quantized):
            raise ValueError(f"{name} is not written")
    for name in state:
        if _is_in(done, name) and name not in tally.written or _is_in(ahead, name) and name in tally.written:
            raise ValueError(f"{name} belongs to another number of blocks than {tally.units}")
    strange = {name for name in tally.written - state.keys() if name.rpartition(".")[0] not in quantized}
    if not quantized or strange or len(quantized) < len(tally.quantized_names):
        raise ValueError("other tensors are named than those of the model")
    _check_figures(tally, quantized, done)


def _check_figures(tally: Tally, quantized: set[str], done: tuple[str, ...]) -> None:
    counts = (tally.bytes, tally.quantized_bytes, tally.quantized_weights)
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"counts of {counts}")
    for layer in tally.layers:
        losses = (layer.loss_rtn, layer.loss_awq, layer.loss_solver, layer.ratio)
        if layer.name not in quantized or layer.group_size not in GROUP_SIZES or not all(map(_is_figure, losses)):
            raise ValueError(f"a layer {layer}")
    for name, errors in tally.blocks.items():
        if name not in done or not all(type(error) is float for error in (errors.before, errors.after)):
            raise ValueError(f"a block {name}")
    fit = tally.distilled
    if fit is not None and not all(map(_is_figure, (fit.steps, fit.kept, fit.before, fit.after))):
        raise ValueError(f"distilled {fit}")


def _is_in(modules: Collection[str], name: str) -> bool:
    """Whether a name is that of one of the modules, or of something in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_figure(value: object) -> bool:
    return value is None or type(value) in (int, float)


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
