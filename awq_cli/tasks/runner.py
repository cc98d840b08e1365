"""What the tasks that run a model share: a model, float or quantized, ready to run on a target."""

from dataclasses import dataclass
from pathlib import Path

import torch

from awq_cli import paths
from awq_cli.tasks.progress import Progress
from checkpoints import store
from checkpoints.pretrained import open_pretrained
from qlinear.backends.base import Meter
from qlinear.backends.registry import Npu, open_target
from qlinear.decoder import Decoder, ModuleDecoder
from qlinear.errors import OptionError
from qlinear.fused import fused_decoder


@dataclass(frozen=True)
class ModelRequest:
    """The fields of a request that say which model runs, and where."""

    model_name: str
    w_bit: int
    group_size: int | None
    awq: str
    solver: str | None
    lm_head: bool
    checkpoint: str | None
    precision: str
    target: str
    device: str
    latency: tuple[str, ...]
    flash_attention: bool | None
    trust_remote_code: bool


@dataclass(frozen=True)
class ModelResult:
    """The fields of a result that say which model ran, and where; a task's own figures follow them."""

    task: str
    model: str
    target: str
    backend: str
    notes: tuple[str, ...]
    precision: str
    flash_attention: bool
    checkpoint: str | None


@dataclass(frozen=True)
class Runnable:
    """A model and what is known of it.

    name: of the model or of its checkpoint; backend: which code runs the quantized layers; model_bytes: as stored;
    fingerprint: of the float model, or of the one a checkpoint says it was made from;
    origin: what `--model_name` was when the checkpoint was made;
    notes: what the user should know of the backend, such as the NPU that was looked for;
    meter: counts what hardware that is only emulated would have done.
    """

    name: str
    model: torch.nn.Module
    tokenizer: object
    backend: str
    flash_attention: bool
    model_bytes: int
    checkpoint: str | None
    fingerprint: str | None = None
    origin: str | None = None
    notes: tuple[str, ...] = ()
    meter: Meter | None = None

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model was made for, or None if its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def decoder(self, max_tokens: int, progress: Progress) -> Decoder:
        """With flash attention the whole stack as one native call per token, where model and target allow it."""
        if self.flash_attention and self.meter is None:  # a metered backend has to see every matmul
            fused, reason = fused_decoder(self.model, max_tokens)
            if fused is not None:
                return fused
            progress.note(f"--flash_attention runs the model's own modules: {reason}")
        return ModuleDecoder(self.model, max_tokens, static_cache=self.flash_attention)

    def described(self, task: str, request: ModelRequest) -> dict[str, object]:
        """The fields of `ModelResult`."""
        return {
            "task": task,
            "model": self.name,
            "target": request.target,
            "backend": self.backend,
            "notes": self.notes,
            "precision": request.precision,
            "flash_attention": self.flash_attention,
            "checkpoint": self.checkpoint,
        }

    def end_tokens(self) -> frozenset[int]:
        given = self.model.generation_config.eos_token_id
        ids = given if isinstance(given, list) else [given]
        return frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    def check_fits(self, tokens: int, options: str) -> None:
        """Raise `OptionError` if what `options` ask for is longer than the model's context."""
        if self.max_positions is not None and tokens > self.max_positions:
            raise OptionError(
                f"{options} need {tokens} tokens, more than the model's context of {self.max_positions}; ask for fewer"
            )


def open_runnable(request: ModelRequest) -> Runnable:
    """Load the float model or the quantized checkpoint that the request names onto its target."""
    if request.precision == "bf16":
        return open_float(request.model_name, request)
    target = open_target(request.target, Npu(request.device, _figures(request.latency)))
    directory = _checkpoint(request)
    loaded = store.load(directory, target.backend, request.flash_attention, request.trust_remote_code)
    return Runnable(
        directory.resolve().name,
        loaded.model,
        loaded.tokenizer,
        target.backend.name,
        loaded.flash_attention,
        loaded.model_bytes,
        str(directory),
        loaded.recipe.get("fingerprint"),
        loaded.recipe.get("options", {}).get("model_name"),
        (target.note,) if target.note else (),
        target.backend.meter(),
    )


def _figures(given: tuple[str, ...]) -> dict[str, float]:
    """NAME=VALUE pairs of `--latency`; whether there is such a name is the latency model's to say."""
    figures = {}
    for pair in given:
        name, _, value = pair.partition("=")
        try:
            figures[name] = float(value)
        except ValueError as error:
            raise OptionError(f"--latency {pair}: has to be NAME=VALUE with a number") from error
    return figures


def open_float(model_name: str, request: ModelRequest) -> Runnable:
    """The float model of that name on the request's target, whatever else the request names."""
    if request.target.startswith("aie"):
        raise OptionError(f"--precision bf16 runs the float model, which --target {request.target} cannot; use cpu")
    device = open_target(request.target).backend.device
    source = open_pretrained(model_name, request.trust_remote_code)
    model = source.load().to(device)
    code, flash = f"{request.target}/torch bf16", bool(request.flash_attention)
    return Runnable(
        source.name, model, source.tokenizer, code, flash, source.float_bytes, None, source.fingerprint
    )  # fmt: skip


def _checkpoint(request: ModelRequest) -> Path:
    if request.checkpoint is not None:
        return Path(request.checkpoint)
    return paths.find_checkpoint(
        request.model_name,
        request.w_bit,
        request.group_size,
        request.awq,
        request.solver,
        request.lm_head,
        request.flash_attention,
    )
