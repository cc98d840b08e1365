"""How a checkpoint is found again from the options that made it."""

import shlex
from dataclasses import replace
from pathlib import Path

from checkpoints.pretrained import model_slug
from qlinear.errors import CheckpointError
from quantization.paths import MODELS, checkpoint_name
from quantization.recipe import DEFAULT_GROUP_SIZES, DEFAULT_SOLVERS, Awq, Recipe

# The fields of a recipe that a checkpoint is named after.
NAMING = ("w_bit", "group_size", "awq", "solver", "lm_head")


def find_checkpoint(model_name: str, recipe: Recipe) -> Path:
    """The checkpoint that `quantize` makes of the same options; raises `CheckpointError` naming those that exist.

    A checkpoint made with `--flash_attention` differs only in its default, so either kind serves; the one made with
    the same flag is preferred. A solver of None stands for those that `quantize` takes by itself, the better one first.
    """
    model = model_slug(model_name)
    sizes = (recipe.group_size,) if recipe.group_size else DEFAULT_GROUP_SIZES
    for size in sizes:
        for solver in (recipe.solver,) if recipe.solver else _default_solvers(recipe):
            for flash in (True, False) if recipe.flash_attention else (False, True):
                named = replace(recipe, group_size=size, solver=solver, flash_attention=flash)
                path = MODELS / checkpoint_name(model, named)
                if (path / "config.json").is_file():
                    return path
    raise CheckpointError(_missing(model_name, recipe))


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
    make = f"run_awq.py --task quantize --model_name {shlex.quote(model_name)} --w_bit {recipe.w_bit}"
    make += f" --group_size {recipe.group_size}" * bool(recipe.group_size) + " --awq none" * (recipe.awq is Awq.NONE)
    make += f" --solver {recipe.solver}" * bool(recipe.solver) + " --lm_head" * recipe.lm_head
    return f"no checkpoint {MODELS / wanted}; {have}; make it with: {make}"
