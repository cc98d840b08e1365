"""How a checkpoint is found again from the options that made it."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from checkpoints.local import model_slug
from checkpoints.origin import Origin
from qlinear.errors import CheckpointError
from quantization.paths import MODELS, checkpoint_name
from quantization.recipe import DEFAULT_GROUP_SIZES, DEFAULT_SOLVERS, EMBEDDING_BITS, Awq, Recipe

# The fields of a recipe that a checkpoint is named after.
NAMING = ("w_bit", "bits_per_weight", "group_size", "symmetric", "awq", "solver", "lm_head")


def find_checkpoint(model_name: str, recipe: Recipe, trust_remote_code: bool) -> Path:
    """The checkpoint that `quantize` makes of the same options; raises `CheckpointError` naming those that exist.

    A checkpoint made with `--flash_attention` differs only in its default, so either kind serves; the one made with
    the same flag is preferred. A solver of None stands for those that `quantize` takes by itself, the better one first;
    so does a distilled one come before one that is not, and an embedding of 16 bits before one of 8.
    One that was made of another model of the same name is passed over.
    """
    there = [path for path in _candidates(model_name, recipe) if (path / "config.json").is_file()]
    if not there:
        raise CheckpointError(_missing(model_name, recipe))
    for path in there:
        if Origin.read(path).is_of_files(model_name):
            return path
    from checkpoints.pretrained import fingerprint_at_hand

    fingerprint = fingerprint_at_hand(model_name, trust_remote_code)
    for path in there:
        if not Origin.read(path).is_other(model_name, fingerprint):
            return path
    raise CheckpointError(_other_model(there[0], model_name, fingerprint))


def _candidates(model_name: str, recipe: Recipe) -> Iterator[Path]:
    model = model_slug(model_name)
    sizes = (recipe.group_size,) if recipe.group_size or recipe.mixed else DEFAULT_GROUP_SIZES
    for size in sizes:
        for solver in (recipe.solver,) if recipe.solver else _default_solvers(recipe):
            for distill in (1, 0):
                for bits in EMBEDDING_BITS:
                    for flash in (True, False) if recipe.flash_attention else (False, True):
                        named = replace(
                            recipe, group_size=size, solver=solver, distill=distill, embedding_bits=bits,
                            flash_attention=flash,
                        )  # fmt: skip
                        yield MODELS / checkpoint_name(model, named)


def _other_model(path: Path, model_name: str, fingerprint: str | None) -> str:
    origin = Origin.read(path)
    content = "" if fingerprint is None else f" (fingerprint {fingerprint[:12]})"
    if origin.is_named(model_name):
        then = f"{model_name} has changed{content} since; make it again with `overwrite`"
    else:
        then = f"not of {model_name}{content}; quantize that to another `output`"
    return f"{path} was made of {origin}, {then}, or give `checkpoint` to run this one"


def _default_solvers(recipe: Recipe) -> tuple[str, ...]:
    """Whichever way the scales were come by, searched or loaded, they are wanted where AWQ is."""
    scaled = recipe.awq is not Awq.NONE
    found = (solver for awq, solver in DEFAULT_SOLVERS.items() if (awq is not Awq.NONE) == scaled)
    return tuple(dict.fromkeys(found))


def _missing(model_name: str, recipe: Recipe) -> str:
    there = sorted(path.parent.name for path in MODELS.glob("[!.]*/config.json"))
    have = f"{MODELS}/ has {', '.join(there)}" if there else f"{MODELS}/ has none"
    solver = recipe.solver or _default_solvers(recipe)[0]
    wanted = checkpoint_name(model_slug(model_name), replace(recipe, solver=solver, flash_attention=False))
    make = f"run_awq.py --task quantize --model_name {shlex.quote(model_name)} "
    make += f"--bits_per_weight {recipe.bits_per_weight:g}" if recipe.mixed else f"--w_bit {recipe.w_bit}"
    make += f" --group_size {recipe.group_size}" * bool(recipe.group_size) + " --symmetric" * recipe.symmetric
    make += " --awq none" * (recipe.awq is Awq.NONE)
    make += f" --solver {recipe.solver}" * bool(recipe.solver) + " --lm_head" * recipe.lm_head
    return f"no checkpoint {MODELS / wanted}; {have}; make it with: {make}"
