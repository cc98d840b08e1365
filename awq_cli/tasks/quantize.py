"""Make a 3- or 4-bit checkpoint of a float model."""

from dataclasses import dataclass

from qlinear.progress import Watcher
from quantization.quantize import Place, Result, quantize
from quantization.recipe import Recipe


@dataclass(frozen=True)
class Request:
    model_name: str
    recipe: Recipe
    place: Place
    trust_remote_code: bool


def run(request: Request, watch: Watcher) -> Result:
    return quantize(request.model_name, request.recipe, request.place, request.trust_remote_code, watch)
