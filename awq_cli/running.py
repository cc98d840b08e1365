"""What the tasks that run a model share: which model, on which target, and what their results say of it."""

from dataclasses import dataclass, field, replace
from os import path

import run_awq
from awq_cli.finding import NAMING, find_checkpoint
from awq_cli.spelling import as_options
from engine.model import Model
from qlinear.errors import OptionError
from qlinear.progress import Watcher
from quantization.recipe import Recipe


@dataclass(frozen=True)
class ModelRequest:
    """The fields of a request that say which model runs, and where. recipe: of which a checkpoint is named after."""

    model_name: str
    recipe: Recipe = field(metadata={"options": NAMING})
    checkpoint: str | None
    precision: str
    kv_bits: int
    head_bits: int
    target: str
    device: str
    latency: tuple[str, ...]
    flash_attention: bool | None
    trust_remote_code: bool

    def of_float(self, model_name: str, target: str, flash_attention: bool) -> "ModelRequest":
        """The same with a float model in the place of the checkpoint."""
        return replace(
            self,
            model_name=model_name,
            precision="bf16",
            kv_bits=16,
            head_bits=16,
            target=target,
            flash_attention=flash_attention,
            latency=(),
        )


@dataclass(frozen=True)
class ModelResult:
    """The fields of a result that say which model ran, and where; a task's own figures follow them.

    kv_bytes: of the largest cache of keys and values that there was, None where the model's modules keep their own.
    """

    task: str
    model: str
    target: str
    backend: str
    notes: tuple[str, ...]
    precision: str
    kv_bits: int
    head_bits: int
    kv_bytes: int | None
    flash_attention: bool
    checkpoint: str | None


def open_model(request: ModelRequest, watch: Watcher, draft: str | None = None) -> Model:
    """Load the float model or the quantized checkpoint that the request names onto its target.

    draft: what proposes tokens: "lookup", a checkpoint's directory, or a model of which there is a checkpoint.
    """
    source = request.model_name
    if request.precision != "bf16":
        recipe = replace(request.recipe, flash_attention=request.flash_attention)
        source = request.checkpoint or str(find_checkpoint(request.model_name, recipe, request.trust_remote_code))
    return run_awq.load(
        source,
        target=request.target,
        precision=request.precision,
        kv_bits=request.kv_bits,
        head_bits=request.head_bits,
        device=request.device,
        latency=_figures(request.latency),
        flash_attention=request.flash_attention,
        draft=None if draft is None else _find_draft(request, draft),
        trust_remote_code=request.trust_remote_code,
        progress=watch,
    )


def _find_draft(request: ModelRequest, draft: str) -> str:
    """What `load` takes. Raises `CheckpointError` where there is no such checkpoint."""
    if draft == run_awq.LOOKUP or path.isfile(draft) or path.isfile(path.join(draft, "config.json")):
        return draft
    return str(find_checkpoint(draft, request.recipe, request.trust_remote_code))


def described(task: str, request: ModelRequest, model: Model, notes: tuple[str, ...] = ()) -> dict[str, object]:
    """The fields of `ModelResult`; notes: what there is to know beside what is to be known of the target."""
    return {
        "task": task,
        "model": model.about.name,
        "target": request.target,
        "backend": model.about.code,
        "notes": tuple(map(as_options, (*model.about.notes, *notes))),
        "precision": request.precision,
        "kv_bits": request.kv_bits,
        "head_bits": request.head_bits,
        "kv_bytes": model.kv_bytes,
        "flash_attention": model.flash_attention,
        "checkpoint": model.about.checkpoint,
    }


def _figures(given: tuple[str, ...]) -> dict[str, float]:
    """NAME=VALUE pairs of `--latency`; whether there is such a name is the latency model's to say."""
    figures = {}
    for pair in given:
        name, _, value = pair.partition("=")
        try:
            figures[name] = float(value)
        except ValueError as error:
            raise OptionError(f"`latency={pair}`: has to be NAME=VALUE with a number") from error
    return figures
