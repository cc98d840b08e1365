"""A quantized checkpoint written again in the format of other programs: the same codes, another arrangement."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.beside import find_beside
from checkpoints.card import SIZE, card_text, facts_of, losses_of, read_origin
from checkpoints.formats.names import FORMATS, GGUF_FLOATS
from checkpoints.formats.readers import Layout
from checkpoints.formats.stored import BIAS, Rounding, StoredLinear, check_finite
from checkpoints.formats.writers import WRITERS, Body, Writer, common_group_size, regrouped
from checkpoints.gguf_export import export_gguf, rehearse_gguf
from checkpoints.places import ModelSource
from checkpoints.pretrained import PretrainedModel
from checkpoints.quantized import (
    check_others,
    check_quantized,
    check_tensors,
    named,
    open_stored,
    read_recipe,
    read_tokenizer,
)
from checkpoints.quantized_gguf import is_gguf
from checkpoints.sources import TensorSource
from checkpoints.writer import CheckpointWriter, Description
from qlinear.errors import CheckpointError, OptionError
from qlinear.grid import GridWeight, middle
from qlinear.packing import unpack
from qlinear.progress import Watcher, silent, steps


@dataclass(frozen=True)
class Loss:
    """What floats lose in a type: the mean and the largest change of one relative to it, and of all together (rms)."""

    mean: float
    largest: float
    rms: float

    @classmethod
    def of(cls, rounding: Rounding) -> "Loss":
        return cls(rounding.mean, rounding.largest, rounding.rms)


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    source: the directory of the checkpoint that was exported, checkpoint: of what was made of it; bytes: of its
    tensors; scales, floats: what they lost in the type that the format has; kept: linears that the source has quantized
    and the format has no place for, written as floats.
    """

    task: str
    source: str
    format: str
    checkpoint: str
    w_bit: int
    group_size: int
    symmetric: bool
    bytes: int
    scales: Loss
    floats: Loss
    kept: list[str]
    seconds: float


def export(
    checkpoint: Path,
    output: Path,
    format: str,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    watch: Watcher = silent,
) -> Exported:
    """Write a quantized checkpoint, of any format that is read here, in `format`, a name in `FORMATS`.

    Raises `AwqError`s of one line each; nothing is half written.
    """
    if format not in FORMATS:
        raise OptionError(f"`format={format}` is not one of {', '.join(FORMATS)}")
    if is_gguf(checkpoint):
        raise CheckpointError(f"{checkpoint} is GGUF already; what is exported is a checkpoint's directory")
    start = time.perf_counter()
    if format in GGUF_FLOATS:
        made = export_gguf(checkpoint, output, GGUF_FLOATS[format], overwrite, trust_remote_code, watch)
        return Exported(
            "export", str(checkpoint), format, str(output), made.bits, made.group_size, made.symmetric,
            made.file_bytes, Loss.of(made.scales), Loss.of(made.floats), [], time.perf_counter() - start,
        )  # fmt: skip
    work = _Work(checkpoint, WRITERS[format], trust_remote_code)
    with CheckpointWriter(output, overwrite, source=work.stored.files) as writer:
        description = work.description()
        writer.rehearse(description, sum(file.stat().st_size for file in work.stored.files))
        body = work.body()
        size = 0
        for name, tensor in work.tensors(body, watch):
            writer.add(name, tensor)
            size += tensor.nbytes
        result = Exported(
            "export", str(checkpoint), format, str(output), body.bits, body.group_size, body.symmetric, size,
            Loss.of(work.scales), Loss.of(work.floats), work.kept, time.perf_counter() - start,
        )  # fmt: skip
        work.finish(writer, description, body, result)
    return result


def rehearse(source: PretrainedModel, output: Path, format: str, overwrite: bool, lm_head: bool) -> None:
    """Raise what `export` will of a checkpoint that is yet to be made of this float model, as far as that tells."""
    if format in GGUF_FLOATS:
        rehearse_gguf(source, output, overwrite, lm_head)
    else:
        CheckpointWriter(output, overwrite, source=source.files)  # which looks at the place


class _Work:
    """What of a checkpoint goes where. kept: quantized linears that are written as floats."""

    def __init__(self, directory: Path, writer: Writer, trust_remote_code: bool):
        self.directory, self.writer, self.trusted = directory, writer, trust_remote_code
        opened: tuple[Layout, nn.Module, ModelSource] = open_stored(directory, trust_remote_code, Rounding(None))
        self.layout, self.model, self.source = opened
        self.stored: TensorSource = self.layout.tensors(directory)
        self.scales, self.floats = Rounding(writer.dtype), Rounding(writer.dtype)
        with named(directory):
            self.found = check_tensors(self.model, self.source, self.layout)
            check_others(self.model, self.source, self.found)
        self.head = _head_name(self.model)
        self.fitting = {name: linear for name, linear in self.found.items() if self._fits(name, linear)}
        self.kept = [name for name in self.found if name not in self.fitting]
        if not self.fitting:
            raise OptionError(f"`format={writer.name}` has no place for any linear of {directory}")

    def _fits(self, name: str, linear: StoredLinear) -> bool:
        return (name != self.head or self.writer.knows_head) and self.writer.fits(linear)

    def description(self) -> Description:
        beside, tokenizer = find_beside(self.directory), read_tokenizer(self.directory, self.trusted)
        config = self.model.config
        dtype = self.writer.dtype or getattr(config, "dtype", None) or torch.bfloat16
        generation = self.model.generation_config
        return Description(config, generation, tokenizer, beside, self.trusted, dtype)

    def body(self) -> Body:
        bits = {linear.bits for linear in self.fitting.values()}
        if len(bits) > 1:
            raise OptionError(
                f"{self.directory} mixes linears of {sorted(bits)} bits; an export has one number of bits"
            )
        (bits,) = bits
        lowest, highest = 2**bits - 1, 0
        for name, linear in self.fitting.items():
            with ExitStack() as lent, named(self.directory):
                packed = self.layout.read(name, linear, self.source, lent).weight
                zeros = unpack(packed.zeros.t().contiguous(), bits, linear.shape[0])
                lowest, highest = min(lowest, int(zeros.min())), max(highest, int(zeros.max()))
        modules = self.model.named_modules()
        matrices = {name: module for name, module in modules if _is_matrix(module) and name not in self.fitting}
        kept = [name if isinstance(module, nn.Linear) else self._in_files(name) for name, module in matrices.items()]
        symmetric = lowest == highest == middle(bits)
        return Body(bits, common_group_size(self.fitting.values()), symmetric, kept, self.head)

    def _in_files(self, name: str) -> str:
        """What a router is called there."""
        return self.source.name_in_files(f"{name}.weight").removesuffix(".weight")

    def tensors(self, body: Body, watch: Watcher) -> Iterator[tuple[str, Tensor]]:
        """Everything that the checkpoint is going to hold, under the names that the one before has for it."""
        gone = set()
        for name in steps(list(self.found), len(self.found), "linears", watch):
            first = self.source.name_in_files(f"{name}.{self.layout.parts[0]}")
            base = first.removesuffix(self.layout.parts[0])
            gone |= {f"{base}{part}" for part in (*self.layout.parts, BIAS)}
            with ExitStack() as lent, named(self.directory):
                linear = self.layout.read(name, self.found[name], self.source, lent)
                weight, bias = linear.weight.unpack(), linear.bias
            bias = None if bias is None else self.floats(f"{name}.{BIAS}", bias.clone())
            for part, tensor in self._written(name, weight, bias, body).items():
                yield f"{base}{part}", tensor
        for name in self.stored.shapes:
            if name not in gone:
                with self.stored.borrow(name) as tensor:
                    yield name, self._float(name, tensor.clone())

    def _written(self, name: str, weight: GridWeight, bias: Tensor | None, body: Body) -> dict[str, Tensor]:
        if name not in self.fitting:
            dense = self.floats(f"{name}.weight", weight.dequantize())
            return {"weight": dense} if bias is None else {"weight": dense, BIAS: bias}
        scales = self.scales(f"{name}: a scale", weight.scales)
        made = regrouped(GridWeight(weight.codes, weight.zeros, scales, weight.bits), body.group_size)
        return self.writer.tensors(made, bias, body)

    def _float(self, name: str, tensor: Tensor) -> Tensor:
        """Half floats become the format's; what is wider is so for a reason."""
        check_finite(name, tensor)
        return self.floats(name, tensor) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    def finish(self, writer: CheckpointWriter, description: Description, body: Body, result: Exported) -> None:
        recipe = read_recipe(self.directory)
        made = recipe | {"exported": {"format": result.format, "scales": vars(result.scales), "kept": result.kept}}
        description = replace(description, card=self._card(recipe, result))
        if self.head in self.found:
            description.config.tie_word_embeddings = False

        def check(folder: Path) -> None:
            check_quantized(folder, self.trusted)

        writer.finish(description, self.writer.section(body), made, check)

    def _card(self, recipe: dict, result: Exported) -> str:
        origin = read_origin(recipe.get("options", {}).get("model_name"), self.directory)
        facts = facts_of(recipe) | {"bits": result.w_bit, "group size": result.group_size}
        for name in (SIZE, "embedding"):  # is another now
            facts.pop(name, None)
        losses = losses_of(recipe)
        if self.writer.dtype is not None:
            losses.append(
                f"scales stored as float16: changed by {result.scales.mean:.1e} on average, "
                f"{result.scales.largest:.1e} at most"
            )
        if result.kept:
            losses.append(f"not quantized in this format: {', '.join(result.kept)}")
        return card_text(origin, result.format, Path(result.checkpoint).resolve().name, facts, losses)


def _is_matrix(module: nn.Module) -> bool:
    """A linear, or what readers hold as one: a router of experts is none in transformers."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _head_name(model: nn.Module) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)
