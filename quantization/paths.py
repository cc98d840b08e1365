"""Where checkpoints and scales files lie when nobody says where, and what they are called."""

from pathlib import Path

from checkpoints.origin import Origin
from checkpoints.recipes import RECIPE
from qlinear.cache import cache_directory
from qlinear.errors import CheckpointError, OptionError
from quantization.recipe import Awq, Recipe

MODELS = Path("quantized_models")


def checkpoint_name(model: str, recipe: Recipe) -> str:
    """The directory of what a recipe makes of a model; recipe: settled, a group size of None stands for any (`*`)."""
    scaled, solver = recipe.awq is not Awq.NONE, recipe.solver
    method = {(True, "rtn"): ["awq"], (False, solver): [solver]}.get((scaled, solver), ["awq", solver])
    parts = [model, *_of_grid(recipe), *method] + ["distilled"] * bool(recipe.distill)
    parts += ["lm_head"] * recipe.lm_head + [f"e{recipe.embedding_bits}"] * (recipe.embedding_bits < 16)
    return "-".join(parts + ["flash_attention"] * bool(recipe.flash_attention))


def _of_grid(recipe: Recipe) -> list[str]:
    if recipe.mixed:
        bits, sizes = f"w{recipe.bits_per_weight:g}", f"g{recipe.group_size or 'mixed'}"
    else:
        bits, sizes = f"w{recipe.w_bit}", f"g{recipe.group_size or '*'}"
    return [bits, sizes] + ["symmetric"] * recipe.symmetric


def refuse_another_model(directory: Path, model_name: str, fingerprint: str) -> None:
    """Two models may have one name: raise `CheckpointError` where what is there by it was made of another one.

    A model of the same place that has changed since is the same model here.
    """
    if not (directory / RECIPE).is_file():
        return  # whatever stands there, if anything, is not ours
    origin = Origin.read(directory)
    if origin.is_other(model_name, fingerprint) and not origin.is_named(model_name):
        raise CheckpointError(
            f"{directory} is there already, made of {origin}; give another `output` for {model_name} (fingerprint "
            f"{fingerprint[:12]})"
        )


def scales_path(model: str, recipe: Recipe) -> Path:
    """The file in which the scales of the last search for a model and grid are kept.

    Raises `OptionError` in an environment without a home.
    """
    cache = cache_directory()
    if cache is None:
        raise OptionError("there is no home directory to keep scales in; set AWQ_CACHE or give `scales`")
    return cache / f"{'-'.join([model, *_of_grid(recipe)])}.pt"
