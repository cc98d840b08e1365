"""The command, when run; the Python API, when imported: `from run_awq import Recipe, quantize, load`.

    quantize("smollm2-135m-instruct", "out", Recipe(w_bit=4))
    model = load("out")
    for piece in model.stream("What is a poem?", chat=True):
        print(piece, end="")

Importing it does nothing, and loads no large library. What a user can cause is raised as an `AwqError` of one line.
docs/python.md has more.
"""

import os
from typing import TYPE_CHECKING

from qlinear.errors import AwqError, OptionError
from qlinear.progress import Note, Step, Watcher, silent
from qlinear.version import __version__
from quantization.recipe import Awq, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.model import Model
    from qlinear.backends.registry import Target
    from quantization.quantize import Result

__all__ = ["AwqError", "Awq", "Note", "Recipe", "Step", "__version__", "load", "quantize"]


def quantize(
    model_name: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    recipe: Recipe = Recipe(),
    *,
    overwrite: bool = False,
    resume: bool = False,
    trust_remote_code: bool = False,
    progress: Watcher = silent,
) -> "Result":
    """Quantize a float model to 3 or 4 bits and save the checkpoint; what came of it is returned.

    model_name: an embedded name, a local directory, a .gguf file or a hub id; output: the directory of the checkpoint,
    None for one in `quantized_models/` named after the recipe; overwrite: replace a checkpoint that is there; resume:
    go on where a run with this recipe to this output was stopped; progress: called with a `Note` or a `Step` at a time.
    Raises `AwqError` where something is missing, does not fit or is in the way; nothing is half written.
    """
    from quantization.quantize import Place
    from quantization.quantize import quantize as run

    if not isinstance(recipe, Recipe):
        raise OptionError(f"`recipe` has to be a Recipe, not {type(recipe).__name__}")
    place = Place(output and _path("output", output), overwrite, resume)
    return run(_path("model_name", model_name), recipe, place, trust_remote_code, progress)


def load(
    source: str | os.PathLike[str],
    *,
    target: str = "cpu",
    precision: str = "w4abf16",
    device: str = "phx",
    latency: "Mapping[str, float] | None" = None,
    flash_attention: bool | None = None,
    trust_remote_code: bool = False,
    progress: Watcher = silent,
) -> "Model":
    """Load a model onto a target, ready to run.

    source: the directory of a checkpoint, or with precision "bf16" a float model by name as for `quantize`;
    target: "cpu", "cuda", "aie" or "aie_emu"; device: which NPU an aie target is; latency: figures of its latency model
    to replace; flash_attention: run the whole stack at once where model and target allow it; None: as was asked for
    when the checkpoint was made, and where nothing was, yes. Raises `AwqError` for a source that cannot be read and a
    target that this machine does not have.
    """
    from qlinear.backends.registry import Npu, open_target

    source = _path("source", source)
    opened = open_target(target, Npu(device, latency or {}))
    if precision == "bf16":
        return _load_float(source, target, opened, flash_attention is not False, trust_remote_code, progress)
    if precision != "w4abf16":
        raise OptionError(f"`precision={precision}` is not one of bf16, w4abf16")
    return _load_quantized(source, opened, flash_attention, trust_remote_code, progress)


def _path(name: str, value: object) -> str:
    """A name or path as text. Raises `OptionError` for what is neither, a recipe in the place of the output say."""
    if not isinstance(value, str | os.PathLike):
        raise OptionError(f"`{name}` has to be a name or a path, not {type(value).__name__}")
    return os.fspath(value)


def _load_quantized(
    directory: str, target: "Target", flash_attention: bool | None, trust_remote_code: bool, progress: Watcher
) -> "Model":
    from pathlib import Path

    from checkpoints.quantized import open_quantized
    from engine.model import About, Model

    opened = open_quantized(Path(directory), target.backend, flash_attention, trust_remote_code)
    about = About(
        name=Path(directory).resolve().name,
        code=target.backend.name,
        precision="w4abf16",
        model_bytes=opened.model_bytes,
        checkpoint=str(directory),
        fingerprint=opened.recipe.get("fingerprint"),
        origin=opened.recipe.get("options", {}).get("model_name"),
        notes=(target.note,) if target.note else (),
    )
    for note in about.notes:
        progress(Note(note))
    return Model(about, opened.module, opened.tokenizer, target.backend, opened.flash_attention, progress)


def _load_float(
    model_name: str, name: str, target: "Target", flash_attention: bool, trust_remote_code: bool, progress: Watcher
) -> "Model":
    from checkpoints.pretrained import open_pretrained
    from engine.model import About, Model

    if target.backend.float_target is not None:
        raise OptionError(
            f"`precision=bf16` runs the float model, which `target={name}` cannot; use {target.backend.float_target}"
        )
    source = open_pretrained(model_name, trust_remote_code)
    module = source.load().to(target.backend.device)
    about = About(
        name=source.name,
        code=f"{name}/torch bf16",
        precision="bf16",
        model_bytes=source.float_bytes,
        fingerprint=source.fingerprint,
    )
    return Model(about, module, source.tokenizer, target.backend, flash_attention, progress)


if __name__ == "__main__":
    from awq_cli.main import main

    main()
