"""Make a 3- or 4-bit checkpoint of a float model, and the same in another program's format if one is asked for.

Or tell what that would take.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from awq_cli.tasks.export import exported, place_beside
from checkpoints.export import Exported, rehearse
from checkpoints.formats.names import GGUF_FLOATS
from checkpoints.pretrained import PretrainedModel
from qlinear.errors import AwqError, CheckpointError, OptionError
from qlinear.process import rank_and_size
from qlinear.progress import Watcher
from quantization import quantize as quantization
from quantization.forecast import Forecast, forecast
from quantization.quantize import Place, quantize
from quantization.recipe import Recipe


@dataclass(frozen=True)
class Request:
    model_name: str
    recipe: Recipe
    place: Place
    format: str | None
    trust_remote_code: bool
    dry_run: bool
    tensor_parallel: int | None


@dataclass(frozen=True)
class Result(quantization.Result):
    """exported: the same weights in the format that was asked for."""

    exported: Exported | None = None


def run(request: Request, watch: Watcher) -> Result | Forecast:
    if request.format is not None and request.recipe.mixed and request.format not in GGUF_FLOATS:
        raise OptionError(f"`format={request.format}` has one number of bits; leave `bits_per_weight` out, or `format`")
    if request.format == "awq" and request.recipe.w_bit != 4:
        raise OptionError(
            f"`format=awq` has 4 bits only; `format=gptq` and `format=compressed-tensors` have {request.recipe.w_bit}"
        )
    trusted = request.trust_remote_code
    if request.dry_run:
        place = request.place.output
        return forecast(request.model_name, request.recipe, place, request.tensor_parallel, trusted, watch)
    check = partial(_rehearse, request)
    made = Result(**vars(quantize(request.model_name, request.recipe, request.place, trusted, watch, check)))
    if request.format is None or rank_and_size()[0] > 0:
        return made
    try:
        result = exported(made.checkpoint, request.format, None, request.place.overwrite, trusted, watch)
    except AwqError as error:
        raise CheckpointError(f"{made.checkpoint} is complete, and not written as {request.format}: {error}") from error
    return replace(made, exported=result)


def _rehearse(request: Request, source: PretrainedModel, directory: Path) -> None:
    """Raise what of the model, or of what lies beside the checkpoint, is going to be in the way of the other format."""
    if request.format is not None:
        beside = place_beside(directory, request.format)
        rehearse(source, beside, request.format, request.place.overwrite, request.recipe.lm_head)
