"""Which tensors a GGUF file of a model holds, in which kind of blocks, and the bytes of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy
import torch
from torch import Tensor, nn

from architectures.gguf import Gguf
from checkpoints.formats.gguf_blocks import BLOCK, BLOCK_BYTES, kind_for, to_blocks
from checkpoints.formats.stored import Rounding
from qlinear.errors import CheckpointError
from qlinear.grid import GridWeight
from qlinear.sizes import GROUP_SIZES

# An expert's linear: where the experts are, and what it is called in each.
EXPERT = re.compile(r"(.*\.experts)\.\d+\.(\w+)")
# In the names of tensors that choose or weigh experts, which llama.cpp takes in float32.
ROUTER = "ffn_gate_inp"
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


def check_own_head(known: Gguf) -> None:
    """Raise `CheckpointError` where an output head that is not the embedding has no place."""
    if not known.own_head:
        raise CheckpointError(
            f"the output head is another matrix than the embedding, which llama.cpp's {known.architecture} "
            f"does not read; quantize without `lm_head`"
        )


@dataclass(frozen=True)
class Entry:
    """A tensor of the file. names: of the model's that make it, one or one an expert; shape: in torch's order."""

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return bytes_of(self.kind, self.shape)


class Plan:
    """Every tensor of the file before any is read. entries: by name in the file."""

    def __init__(self, weights: Weights, known: Gguf, floats: str):
        import gguf

        if floats not in FLOAT_KINDS:
            raise ValueError(f"{floats} is not one of {', '.join(FLOAT_KINDS)}")
        self.weights, self.known, self.floats = weights, known, floats
        self.scales, self.lost = Rounding(torch.float16), Rounding(None)
        self.group_size = max(GROUP_SIZES)
        number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == known.architecture)
        self._names = gguf.get_tensor_name_map(number, self._config.num_hidden_layers)
        together: dict[str, list[tuple[str, Tensor]]] = {}
        for name, tensor in self._stored():
            together.setdefault(self._name_in_file(name), []).append((name, tensor))
        self.entries = {file_name: self._entry(file_name, tensors) for file_name, tensors in together.items()}

    @property
    def _config(self):
        return self.weights.model.config

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        """What the file holds: everything, a tied head once."""
        model = self.weights.model
        head = model.get_output_embeddings()
        tied = head.weight is model.get_input_embeddings().weight
        if not tied:
            check_own_head(self.known)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not (tied and name.removesuffix(".weight") == self._head_name()):
                yield name, tensor

    def _head_name(self) -> str:
        head = self.weights.model.get_output_embeddings()
        return next(name for name, module in self.weights.model.named_modules() if module is head)

    def _name_in_file(self, name: str) -> str:
        """The same for all experts of a layer."""
        module, _, leaf = name.rpartition(".")
        expert = EXPERT.fullmatch(module)
        stem = self._names.get_name(f"{expert[1]}.{expert[2]}" if expert and self.known.experts else module)
        if stem is None or (leaf == "bias" and module.rpartition(".")[2] not in self.known.biases):
            raise CheckpointError(f"the model has {name}, for which llama.cpp's {self.known.architecture} has no place")
        return f"{stem}.{leaf}"

    def _entry(self, file_name: str, tensors: list[tuple[str, Tensor]]) -> Entry:
        names, shape = tuple(name for name, _ in tensors), tuple(tensors[0][1].shape)
        kinds = sorted({self._kind(file_name, name, shape) for name in names})
        if len(kinds) > 1:
            raise CheckpointError(f"{names[0]} and other experts' are {' and '.join(kinds)}; GGUF has one kind for all")
        return Entry(names, kinds[0], (len(names), *shape) if EXPERT.fullmatch(names[0].rpartition(".")[0]) else shape)

    def _kind(self, file_name: str, name: str, shape: tuple[int, ...]) -> str:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module in self.weights.bits:
            return kind_for(self.weights.bits[module], self.weights.symmetric[module])
        if len(shape) == 1 or ROUTER in file_name:
            return "F32"
        if self.floats == "q8_0" and shape[-1] % BLOCK:
            return "F16"
        return self.floats.upper()

    def kinds(self) -> dict[str, int]:
        """How many linears are in which kind of blocks."""
        found = [entry.kind for entry in self.entries.values() if entry.kind in BLOCK_BYTES for _ in entry.names]
        return {kind: found.count(kind) for kind in sorted(set(found))}

    @property
    def main_kind(self) -> str:
        return max(self.kinds(), key=self.kinds().get)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())

    def notes(self) -> list[str]:
        notes = []
        if 3 in self.weights.bits.values():
            notes.append("three-bit codes are stored as Q4_0, in four bits: the same values in a larger file")
        return notes

    def data(self, file_name: str) -> numpy.ndarray:
        """The bytes of one tensor, `(..., bytes of a row)` uint8; float32 as it is."""
        entry = self.entries[file_name]
        if len(entry.shape) < 3:
            return self._laid_out(file_name, entry.names[0], entry.kind)
        whole = None
        for index, name in enumerate(entry.names):
            part = self._laid_out(file_name, name, entry.kind)
            whole = numpy.empty((len(entry.names), *part.shape), part.dtype) if whole is None else whole
            whole[index] = part
        return whole

    def _laid_out(self, file_name: str, name: str, kind: str) -> numpy.ndarray:
        if kind in BLOCK_BYTES:
            weight = self.weights.grid(name.rpartition(".")[0])
            parts = (weight.codes, weight.zeros, weight.scales)
            parts = (self.known.to_file(file_name, part, self._config) for part in parts)
            weight = GridWeight(*parts, weight.bits)
            self.group_size = min(self.group_size, weight.group_size)
            scales = self.scales(f"{name}: a scale", weight.scales)
            return to_blocks(replace(weight, scales=scales), kind, name).numpy()
        tensor = self.known.to_file(file_name, self.weights.tensor(name), self._config)
        return tensor.float().numpy() if kind == "F32" else _encoded(tensor, kind, name, self.lost)


def bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    import gguf

    per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return torch.Size(shape).numel() // per_block * block_bytes


def _encoded(tensor: Tensor, kind: str, name: str, lost: Rounding) -> numpy.ndarray:
    """A matrix as Q8_0, F16 or BF16, `(N, bytes of a row)` uint8, some rows at a time: float32 is twice its size.

    lost: has what the values lost put on record.
    """
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    encoded = numpy.empty((tensor.shape[0], bytes_of(kind, tensor.shape[1:])), dtype=numpy.uint8)
    for start in range(0, tensor.shape[0], ROWS_AT_ONCE):
        rows = tensor[start : start + ROWS_AT_ONCE].float()
        if kind != "BF16" and rows.abs().max() > 65504:
            raise CheckpointError(f"{name} holds values beyond half precision; give `format=gguf-bf16`")
        made = gguf.quantize(rows.numpy(), number)
        lost.tally(rows.double(), torch.from_numpy(gguf.dequantize(made, number)))
        encoded[start : start + ROWS_AT_ONCE] = made.view(numpy.uint8)
    return encoded
