"""The command, when run; the Python API, when imported: `from run_awq import Recipe, quantize, load`.

    quantize("smollm2-135m-instruct", "out", Recipe(w_bit=4))
    model = load("out")
    for piece in model.stream("What is a poem?", chat=True):
        print(piece, end="")

Importing it does nothing, and loads no large library. What a user can cause is raised as an `AwqError` of one line.
docs/python.md has more.
"""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qlinear.errors import AwqError, CheckpointError, OptionError, is_out_of_memory
from qlinear.progress import Note, Step, Watcher, silent
from qlinear.values import check_choice, check_name, check_path, check_switch, check_words
from qlinear.version import __version__
from quantization.recipe import Awq, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from checkpoints.at_hand import Opened
    from checkpoints.export import Exported
    from checkpoints.quantized import QuantizedModel
    from engine.model import About, Model
    from engine.runner import Runner
    from qlinear.backends.registry import Npu, Target
    from qlinear.backends.widths import Widths
    from quantization.quantize import Result

__all__ = ["AwqError", "Awq", "Note", "Recipe", "Step", "__version__", "export", "load", "quantize"]


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
    out = None if output is None else check_path("output", output)
    place = Place(out, check_switch("overwrite", overwrite), check_switch("resume", resume))
    trusted = check_switch("trust_remote_code", trust_remote_code)
    return run(check_path("model_name", model_name), recipe, place, trusted, progress)


def export(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Watcher = silent,
) -> "Exported":
    """Write a quantized checkpoint, of any format that `load` takes, in the format of other programs.

    format: "awq" (AutoAWQ, 4 bits), "gptq", "compressed-tensors", or "gguf" for a file that llama.cpp runs ("gguf-f16"
    with its embedding in half precision). The codes stay; scales and floats become float16
    where the format has them so, and what is returned says what that lost. Raises `AwqError`.
    """
    from pathlib import Path

    from checkpoints.export import export as run

    place = Path(check_path("output", output))
    replaces, trusted = check_switch("overwrite", overwrite), check_switch("trust_remote_code", trust_remote_code)
    return run(Path(check_name("checkpoint", checkpoint)), place, format, replaces, trusted, progress)


def load(
    source: str | os.PathLike[str],
    *,
    target: str = "cpu",
    precision: str = "w4abf16",
    kv_bits: int = 16,
    head_bits: int = 16,
    device: str = "phx",
    latency: "Mapping[str, float] | None" = None,
    flash_attention: bool | None = None,
    draft: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    progress: Watcher = silent,
) -> "Model":
    """Load a model onto a target, ready to run.

    source: the directory of a checkpoint, or with precision "bf16" a float model by name as for `quantize`; precision
    "w4aint8" rounds activations to int8, at 3 bits too, `kv_bits=8` keeps keys and values, and `head_bits=8` a head
    that is not quantized, as int8 and not as bfloat16, all three on the cpu's kernels only; target: "cpu", "cuda",
    "aie" or "aie_emu"; device: which NPU an aie target is; latency: figures of its latency model to replace;
    flash_attention: run the whole stack at once where model and target allow it; None: as was asked for when the
    checkpoint was made, and where nothing was, yes; draft: "lookup", or the directory of a smaller checkpoint with the
    same tokens: what proposes tokens, so that several are read at a time; the answers stay the same. Raises `AwqError`
    for a source that cannot be read and a target that this machine does not have.
    """
    from qlinear.backends.registry import PRECISIONS, Npu, open_target
    from qlinear.backends.widths import Widths

    flash_attention = check_choice("flash_attention", flash_attention, (None, False, True))
    trust_remote_code = check_switch("trust_remote_code", trust_remote_code)
    check_words("target", target)
    check_choice("precision", precision, PRECISIONS)
    source, npu = check_name("source", source), Npu(device, latency or {})
    widths = _widths(kv_bits, head_bits, flash_attention)
    if draft is not None:
        draft = check_name("draft", draft)
        _check_draft(draft, target, flash_attention)
    if precision == "bf16":
        opened = open_target(target, npu, widths=widths)
        model = _load_float(source, target, opened, flash_attention is not False, trust_remote_code, progress)
    else:
        how = _How(target, npu, precision, widths, flash_attention, trust_remote_code)
        model = _load_quantized(source, how, progress)
    if draft == LOOKUP:
        model.propose_by_lookup()
    elif draft is not None:
        how = _How("cpu", Npu(), precision if precision != "bf16" else "w4abf16", Widths(), None, trust_remote_code)
        model.propose_by(_load_quantized(draft, how, progress))
    return model


LOOKUP = "lookup"


def _check_draft(draft: str, target: str, flash_attention: bool | None) -> None:
    """Raise `OptionError` where a token's bits would depend on what is read with it."""
    if target != "cpu":
        raise OptionError(f"`draft={draft}` is for `target=cpu`, not {target}; leave `draft` out")
    if flash_attention is False:
        raise OptionError(f"`draft={draft}` means nothing with `flash_attention=False`; leave one of them out")


def _widths(kv_bits: int, head_bits: int, flash_attention: bool | None) -> "Widths":
    from qlinear.backends.registry import HEAD_BITS, KV_BITS
    from qlinear.backends.widths import Widths

    kv_bits, head_bits = check_choice("kv_bits", kv_bits, KV_BITS), check_choice("head_bits", head_bits, HEAD_BITS)
    for name, bits in (("kv_bits", kv_bits), ("head_bits", head_bits)):
        if bits != 16 and flash_attention is False:
            raise OptionError(f"`{name}={bits}` means nothing with `flash_attention=False`; leave one of them out")
    return Widths(kv_bits, head_bits)


@dataclass(frozen=True)
class _How:
    """How a checkpoint is to be run, as `load` is asked for it."""

    target: str
    npu: "Npu"
    precision: str
    widths: "Widths"
    flash_attention: bool | None
    trust_remote_code: bool

    @property
    def int8(self) -> bool:
        return self.precision == "w4aint8"


def _load_quantized(directory: str, how: _How, progress: Watcher) -> "Model":
    """Onto the cpu without torch where the checkpoint is a plain one and its family known, else the long way."""
    from engine.model import Model

    runner = tokenizer = None
    at_hand = how.target == "cpu" and how.flash_attention is not False
    if at_hand:
        runner, tokenizer, about = _at_hand(directory, how)
    if runner is None:
        runner, tokenizer, about = _whole(directory, how)
        if at_hand:
            _remember(directory, runner.module, tokenizer)
    for note in about.notes:
        progress(Note(note))
    return Model(about, runner, tokenizer, progress)


def _at_hand(directory: str, how: _How) -> tuple:
    """Runner, tokenizer and what is known; Nones where that is not the way."""
    from pathlib import Path

    from qlinear.backends.cpu import native

    if not native.is_built():
        return None, None, None
    from checkpoints import at_hand
    from engine.at_hand import StackRunner

    def open_whole() -> "Runner":
        if at_hand.mark_of(place) != opened.mark:
            raise CheckpointError(f"{directory} is not what it was when it was loaded; load it again")
        return _whole(str(place), replace(how, flash_attention=True))[0]

    try:
        place = Path(directory).absolute()  # wherever one is when the whole is asked for
        opened = at_hand.open_at_hand(place, how.flash_attention, how.int8)
        runner = StackRunner(opened.config, opened.generation, opened.parts, open_whole, how.widths)
        opened.parts.check_all_used()
    except Exception as error:  # whatever makes it not a plain one: the long way knows what to say
        if is_out_of_memory(error):  # and takes more
            raise
        return None, None, None
    return runner, opened.tokenizer, _about(directory, how.precision, native.code_name(how.int8, how.widths), opened)


def _whole(directory: str, how: _How) -> tuple:
    from pathlib import Path

    from checkpoints.quantized import open_quantized
    from engine.whole import ModuleRunner
    from qlinear.backends.registry import open_target

    on = open_target(how.target, how.npu, how.int8, how.widths)
    opened = open_quantized(Path(directory), on.backend, how.flash_attention, how.trust_remote_code)
    runner = ModuleRunner(opened.module, on.backend, opened.flash_attention)
    return runner, opened.tokenizer, _about(directory, how.precision, on.backend.name, opened, on.note)


def _remember(directory: str, module: "nn.Module", tokenizer: object) -> None:
    """Whether what was opened the long way may be opened at hand the next time."""
    from pathlib import Path

    from checkpoints.proofs import is_proven, proof, remember
    from engine.alike import describes
    from qlinear.backends.cpu import native

    if native.is_built() and not is_proven(Path(directory)):
        remember(proof(Path(directory), tokenizer, module, describes))


def _about(
    directory: str, precision: str, code: str, opened: "Opened | QuantizedModel", note: str | None = None
) -> "About":
    from pathlib import Path

    from engine.model import About

    return About(
        name=Path(directory).resolve().name,
        code=code,
        precision=precision,
        model_bytes=opened.model_bytes,
        checkpoint=str(directory),
        fingerprint=opened.recipe.get("fingerprint"),
        origin=opened.recipe.get("options", {}).get("model_name"),
        notes=((note,) if note else ()) + opened.notes,
    )


def _load_float(
    model_name: str, name: str, target: "Target", flash_attention: bool, trust_remote_code: bool, progress: Watcher
) -> "Model":
    from checkpoints.pretrained import open_pretrained
    from engine.model import About, Model
    from engine.whole import ModuleRunner

    if target.backend.float_target is not None:
        raise OptionError(
            f"`precision=bf16` runs the float model, which `target={name}` cannot; use {target.backend.float_target}"
        )
    source = open_pretrained(model_name, trust_remote_code)
    module = source.load().to(target.backend.device)
    runner = ModuleRunner(module, target.backend, flash_attention, quantized=False)
    code = f"{target.backend.name if runner.is_one_stack() else f'{name}/torch'} bf16"
    about = About(source.name, code, "bf16", source.float_bytes, fingerprint=source.fingerprint)
    return Model(about, runner, source.tokenizer, progress)


if __name__ == "__main__":
    from awq_cli.main import main

    main()
