"""Write a quantized checkpoint in another program's format, and put it on the hub."""

from dataclasses import dataclass, field
from pathlib import Path

from awq_cli.finding import NAMING, find_checkpoint
from checkpoints.export import Exported, export
from checkpoints.formats.names import GGUF_FLOATS, place_of
from checkpoints.push import check_repository, push
from qlinear.errors import OptionError
from qlinear.progress import Note, Watcher
from quantization.recipe import Recipe


@dataclass(frozen=True)
class Request:
    model_name: str
    recipe: Recipe = field(metadata={"options": NAMING})
    checkpoint: str | None
    format: str | None
    output: str | None
    overwrite: bool
    push: str | None
    trust_remote_code: bool


@dataclass(frozen=True)
class Result(Exported):
    """pushed: where to."""

    pushed: str | None = None


def run(request: Request, watch: Watcher) -> Result:
    if request.format is None:
        raise OptionError("`format` is missing: name the format to export to")
    if request.push is not None:
        if request.format in GGUF_FLOATS:
            raise OptionError("`push` uploads a directory; upload a GGUF file with: hf upload ORG/NAME FILE")
        check_repository(request.push)
    checkpoint = request.checkpoint or str(
        find_checkpoint(request.model_name, request.recipe, request.trust_remote_code)
    )
    made = exported(checkpoint, request.format, request.output, request.overwrite, request.trust_remote_code, watch)
    pushed = None
    if request.push is not None:
        watch(Note(f"pushing {made.checkpoint} to {request.push}"))
        pushed = push(Path(made.checkpoint), request.push)
    return Result(**vars(made), pushed=pushed)


def exported(
    checkpoint: str, format: str, output: str | None, overwrite: bool, trust_remote_code: bool, watch: Watcher
) -> Exported:
    """output: None for the place beside."""
    folder = Path(checkpoint)
    place = Path(output) if output else place_beside(folder, format)
    return export(folder, place, format, overwrite, trust_remote_code, watch)


def place_beside(checkpoint: Path, format: str) -> Path:
    """The checkpoint's name with the format's behind it, or with .gguf."""
    named = checkpoint if checkpoint.name not in ("", "..") else checkpoint.resolve()
    return named.with_name(place_of(checkpoint.resolve().name, format))
