"""Writing a quantized model as one `.gguf` file that llama.cpp runs, tokenizer and chat template included.

A linear on the grid becomes Q4_0 or Q4_1 with the same codes; the embedding, the head and linears that were kept become
Q8_0, half precision or bfloat16; norms and biases float32. Tensors are read, laid out and written one at a time.
"""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from architectures.gguf import Gguf
from architectures.registry import gguf_writers
from checkpoints.formats.gguf import read_header
from checkpoints.formats.gguf_header import write_header, write_rope
from checkpoints.formats.gguf_plan import FLOAT_KINDS, Plan, Weights, check_own_head
from checkpoints.formats.gguf_vocab import Vocabulary, read_vocabulary
from checkpoints.formats.stored import Rounding
from checkpoints.place import check_space
from qlinear.errors import CheckpointError, one_line
from qlinear.progress import Watcher, silent, steps

# Of what this program wrote, and nothing else, it replaces a file.
WRITER_KEY, WRITER = "general.quantized_by", "run_awq"


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
    plan, vocabulary = _planned(output, content, floats, overwrite)
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


def rehearse(output: Path, content: Content, overwrite: bool, lm_head: bool) -> None:
    """Raise what `write_gguf` will of place, model and tokenizer, before there are quantized weights.

    lm_head: whether the output head is going to be a matrix of its own.
    """
    import gguf

    plan, _ = _planned(output, content, FLOAT_KINDS[0], overwrite)
    if lm_head:
        check_own_head(plan.known)
    config, header = content.weights.model.config, gguf.GGUFWriter(None, plan.known.architecture)
    write_header(header, config, plan.known)
    write_rope(header, config, plan.known)


def _planned(output: Path, content: Content, floats: str, overwrite: bool) -> tuple[Plan, Vocabulary]:
    _check_place(output, overwrite)
    model = content.weights.model
    known = _known(model.config)
    vocabulary = read_vocabulary(content.tokenizer, model.get_input_embeddings().weight.shape[0], content.ends)
    return Plan(content.weights, known, floats), vocabulary


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


def _write(path: Path, content: Content, plan: Plan, vocabulary: Vocabulary, watch: Watcher) -> list[str]:
    import gguf

    writer = gguf.GGUFWriter(path, plan.known.architecture)
    try:
        config = content.weights.model.config
        writer.add_name(vocabulary.file_name(content.name).encode(errors="backslashreplace").decode())
        writer.add_string(WRITER_KEY, WRITER)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{plan.main_kind}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        notes = write_header(writer, config, plan.known)
        extra = {name: tensor.numpy() for name, tensor in write_rope(writer, config, plan.known).items()}
        vocabulary.write(writer)
        for name, tensor in extra.items():
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes)
        for name, entry in plan.entries.items():
            number, plain = gguf.GGMLQuantizationType[entry.kind], entry.kind == "F32"
            stored = entry.shape if plain else gguf.quant_shape_to_byte_shape(entry.shape, number)
            dtype = numpy.dtype(numpy.float32 if plain else numpy.uint8)
            writer.add_tensor_info(name, stored, dtype, entry.size, raw_dtype=number)
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
