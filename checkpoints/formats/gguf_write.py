"""Writing a quantized model as one `.gguf` file that llama.cpp runs, tokenizer and chat template included.

A linear on the grid becomes Q4_0 or Q4_1 with the same codes; the embedding, the head and linears that were kept become
Q8_0, half precision or bfloat16; norms and biases float32. Tensors are read, laid out and written one at a time.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from architectures.gguf import Gguf
from architectures.registry import gguf_writers
from checkpoints.formats.gguf import read_header
from checkpoints.formats.gguf_blocks import BLOCK, BLOCK_BYTES, kind_for, to_blocks
from checkpoints.formats.gguf_header import write_header, write_rope
from checkpoints.formats.gguf_vocab import Vocabulary, read_vocabulary
from checkpoints.formats.stored import Rounding
from checkpoints.place import check_space
from qlinear.errors import CheckpointError, one_line
from qlinear.grid import GridWeight
from qlinear.progress import Watcher, silent, steps
from qlinear.sizes import GROUP_SIZES

# Of what this program wrote, and nothing else, it replaces a file.
WRITER_KEY, WRITER = "general.quantized_by", "run_awq"
FLOAT_KINDS = ("q8_0", "f16", "bf16")
ROWS_AT_ONCE = 4096


class Weights(Protocol):
    """The tensors of a quantized model by their names in it.

    model: as transformers builds it, on meta, before its linears are replaced; bits, symmetric: of the linears on the
    grid, by name.
    """

    model: nn.Module
    bits: dict[str, int]
    symmetric: dict[str, bool]

    def grid(self, linear: str) -> GridWeight: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Content:
    """What a file is made of. name: of the model, for whoever reads it; ends: the tokens that end a text."""

    name: str
    weights: Weights
    tokenizer: Any
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """What came of it.

    bits: the most of a linear, group_size: the smallest; symmetric: whether all are; kinds: how many linears of which
    kind; scales, floats: what these lost; notes: what differs from the checkpoint.
    """

    path: Path
    file_bytes: int
    bits: int
    group_size: int
    symmetric: bool
    kinds: dict[str, int]
    scales: Rounding
    floats: Rounding
    notes: list[str]


def write_gguf(
    output: Path, content: Content, floats: str = "q8_0", overwrite: bool = False, watch: Watcher = silent
) -> Written:
    """Write the file, beside its final name until it is whole. floats: what matrices off the grid become.

    Raises `CheckpointError` for a model that llama.cpp does not run as transformers does, and for a file in the way.
    """
    _check_place(output, overwrite)
    config = content.weights.model.config
    known = _known(config)
    rows = content.weights.model.get_input_embeddings().weight.shape[0]
    vocabulary = read_vocabulary(content.tokenizer, rows, content.ends)
    plan = _Plan(content.weights, known, floats)
    check_space(_folder(output), plan.size, output)
    try:
        with tempfile.NamedTemporaryFile(dir=_folder(output), prefix=f".{output.name}.", delete=False) as file:
            partial = Path(file.name)
        try:
            notes = _write(partial, content, plan, vocabulary, watch)
            os.chmod(partial, 0o666 & ~_umask())
            partial.replace(output)
        finally:
            with suppress(OSError):
                partial.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {one_line(error)}") from error
    said = [*notes, *plan.notes()]
    bits, symmetric = max(content.weights.bits.values()), all(content.weights.symmetric.values())
    return Written(
        output, output.stat().st_size, bits, plan.group_size, symmetric, plan.kinds(), plan.scales, plan.lost, said
    )  # fmt: skip


def _folder(output: Path) -> Path:
    return output.absolute().parent


def _check_place(output: Path, overwrite: bool) -> None:
    if output.suffix.lower() != ".gguf":
        raise CheckpointError(f"`output` {str(output)!r} has to end in .gguf")
    if not _folder(output).is_dir():
        raise CheckpointError(f"{_folder(output)} is no directory; make it, or give another `output`")
    if not output.exists():
        return
    try:
        ours = output.is_file() and read_header(output)[0].get(WRITER_KEY) == WRITER
    except Exception:  # whatever it is, it is not ours
        ours = False
    if not ours:
        raise CheckpointError(f"{output} is there already and was not made by this program; give another `output`")
    if not overwrite:
        raise CheckpointError(f"{output} exists already; give `overwrite` to replace it, or another `output`")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _known(config: Any) -> Gguf:
    families = gguf_writers()
    family = families.get(config.model_type)
    if family is None:
        raise CheckpointError(f"{config.model_type} models are not written as GGUF; known are {', '.join(families)}")
    return family.gguf


class _Plan:
    """Every tensor of the file before any is read: name, kind and shape."""

    def __init__(self, weights: Weights, known: Gguf, floats: str):
        import gguf

        if floats not in FLOAT_KINDS:
            raise ValueError(f"{floats} is not one of {', '.join(FLOAT_KINDS)}")
        self.weights, self.known, self.floats = weights, known, floats
        self.scales, self.lost = Rounding(torch.float16), Rounding(None)
        self.group_size = max(GROUP_SIZES)
        config = weights.model.config
        number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == known.architecture)
        names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
        # name in the model -> name in the file, kind, shape in torch's order
        self.entries: dict[str, tuple[str, str, tuple[int, ...]]] = {}
        for name, tensor in self._stored():
            module, _, leaf = name.rpartition(".")
            stem = names.get_name(module)
            if stem is None or (leaf == "bias" and module.rpartition(".")[2] not in known.biases):
                raise CheckpointError(f"the model has {name}, for which llama.cpp's {known.architecture} has no place")
            self.entries[name] = f"{stem}.{leaf}", self._kind(module, leaf, tensor.shape), tuple(tensor.shape)

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        """What the file holds: everything, a tied head once."""
        model = self.weights.model
        head = model.get_output_embeddings()
        tied = head.weight is model.get_input_embeddings().weight
        if not tied and not self.known.own_head:
            raise CheckpointError(
                f"the output head is another matrix than the embedding, which llama.cpp's {self.known.architecture} "
                f"does not read; quantize without `lm_head`"
            )
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not (tied and name.removesuffix(".weight") == self._head_name()):
                yield name, tensor

    def _head_name(self) -> str:
        head = self.weights.model.get_output_embeddings()
        return next(name for name, module in self.weights.model.named_modules() if module is head)

    def _kind(self, module: str, leaf: str, shape: tuple[int, ...]) -> str:
        if leaf == "weight" and module in self.weights.bits:
            return kind_for(self.weights.bits[module], self.weights.symmetric[module])
        if len(shape) == 1:
            return "F32"
        if self.floats == "q8_0" and shape[-1] % BLOCK:
            return "F16"
        return self.floats.upper()

    def kinds(self) -> dict[str, int]:
        found = [kind for _, kind, _ in self.entries.values() if kind in BLOCK_BYTES]
        return {kind: found.count(kind) for kind in sorted(set(found))}

    @property
    def main_kind(self) -> str:
        return max(self.kinds(), key=self.kinds().get)

    @property
    def size(self) -> int:
        return sum(_bytes_of(kind, shape) for _, kind, shape in self.entries.values())

    def notes(self) -> list[str]:
        notes = []
        if 3 in self.weights.bits.values():
            notes.append("three-bit codes are stored as Q4_0, in four bits: the same values in a larger file")
        return notes

    def data(self, name: str) -> numpy.ndarray:
        """The bytes of one tensor, `(..., bytes of a row)` uint8; float32 as it is."""
        file_name, kind, _ = self.entries[name]
        config = self.weights.model.config
        if kind in BLOCK_BYTES:
            weight = self.weights.grid(name.rpartition(".")[0])
            parts = (weight.codes, weight.zeros, weight.scales)
            weight = GridWeight(*(self.known.to_file(file_name, part, config) for part in parts), weight.bits)
            self.group_size = min(self.group_size, weight.group_size)
            scales = self.scales(f"{name}: a scale", weight.scales)
            return to_blocks(replace(weight, scales=scales), kind, name).numpy()
        tensor = self.known.to_file(file_name, self.weights.tensor(name), config)
        return tensor.float().numpy() if kind == "F32" else _encoded(tensor, kind, name, self.lost)


def _bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    import gguf

    per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return torch.Size(shape).numel() // per_block * block_bytes


def _encoded(tensor: Tensor, kind: str, name: str, lost: Rounding) -> numpy.ndarray:
    """A matrix as Q8_0, F16 or BF16, `(N, bytes of a row)` uint8, some rows at a time: float32 is twice its size.

    lost: has what the values lost put on record.
    """
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    encoded = numpy.empty((tensor.shape[0], _bytes_of(kind, tensor.shape[1:])), dtype=numpy.uint8)
    for start in range(0, tensor.shape[0], ROWS_AT_ONCE):
        rows = tensor[start : start + ROWS_AT_ONCE].float()
        if kind != "BF16" and rows.abs().max() > 65504:
            raise CheckpointError(f"{name} holds values beyond half precision; give `format=gguf-bf16`")
        made = gguf.quantize(rows.numpy(), number)
        lost.tally(rows.double(), torch.from_numpy(gguf.dequantize(made, number)))
        encoded[start : start + ROWS_AT_ONCE] = made.view(numpy.uint8)
    return encoded


def _write(path: Path, content: Content, plan: _Plan, vocabulary: Vocabulary, watch: Watcher) -> list[str]:
    import gguf

    writer = gguf.GGUFWriter(path, plan.known.architecture)
    try:
        config = content.weights.model.config
        writer.add_name(vocabulary.file_name(content.name))
        writer.add_string(WRITER_KEY, WRITER)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{plan.main_kind}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        notes = write_header(writer, config, plan.known)
        extra = {name: tensor.numpy() for name, tensor in write_rope(writer, config, plan.known).items()}
        vocabulary.write(writer)
        for name, tensor in extra.items():
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        for name, kind, shape in plan.entries.values():
            number = gguf.GGMLQuantizationType[kind]
            stored = shape if kind == "F32" else gguf.quant_shape_to_byte_shape(shape, number)
            dtype = numpy.dtype(numpy.float32 if kind == "F32" else numpy.uint8)
            writer.add_tensor_info(name, stored, dtype, _bytes_of(kind, shape), raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in extra.values():
            writer.write_tensor_data(tensor)
        for name in steps(list(plan.entries), len(plan.entries), "tensors", watch):
            writer.write_tensor_data(plan.data(name))
    finally:
        writer.close()
    return [*vocabulary.notes, *notes]
