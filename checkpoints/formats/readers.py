"""Which reader a quantized checkpoint is for: by the `quant_method` that its config names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from checkpoints.byte_source import ByteSource
from checkpoints.formats import compressed_tensors, gptq, hf_awq
from checkpoints.formats.in_bytes import taken_out
from checkpoints.formats.stored import Rounding, StoredLinear
from checkpoints.sources import TensorSource, open_directory, read_json
from checkpoints.stored_linears import rounding_notes
from qlinear.errors import CheckpointError

READERS: dict[str, ModuleType] = {"compressed-tensors": compressed_tensors, "awq": hf_awq, "gptq": gptq}
# Where older programs left what newer ones put into config.json.
SECTION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


@dataclass(frozen=True)
class Layout:
    """How the quantized linears of a checkpoint lie in its files.

    format: of the reader; parts: see `checkpoints.formats.stored`; quantization: what the reader made of the section;
    in_bytes: float matrices that are stored so (`checkpoints.formats.in_bytes`), and their group sizes.
    """

    format: str
    parts: tuple[str, ...]
    quantization: Any
    check_linear: Callable[[nn.Module, str, dict[str, tuple[int, ...]], Any], StoredLinear]
    read_linear: Callable
    in_bytes: dict[str, int]

    def tensors(self, directory: Path) -> TensorSource:
        """All that the files hold. Raises `ModelError`, or `CheckpointError` for what is not as the config says."""
        stored = open_directory(directory)
        return ByteSource(stored, self.in_bytes) if self.in_bytes else stored

    def quantized_names(self, stored) -> list[str]:
        """The linears that are stored quantized, in the order of their tensors."""
        ending = f".{self.parts[0]}"
        return [name.removesuffix(ending) for name in stored if name.endswith(ending)]

    def check(self, model: nn.Module, name: str, stored: dict[str, tuple[int, ...]]) -> StoredLinear:
        """Check the shapes of a linear's tensors against each other and the model. Raises `CheckpointError`."""
        return self.check_linear(model, name, stored, self.quantization)

    def read(self, name: str, found: StoredLinear, source, lent):
        """The linear's weight over its tensors as the source lends them, until `lent` is closed."""
        return self.read_linear(name, found, source, lent, self.quantization)

    def notes(self) -> tuple[str, ...]:
        """What there is to say of the weights, once they are read."""
        rounding = self.quantization.rounding
        return rounding_notes(rounding.mean, rounding.largest)


def open_layout(section: Any, directory: Path, rounding: Rounding | None = None) -> Layout:
    """Check a config's `quantization_config` against what this program runs; raises `CheckpointError`.

    rounding: of the scales as they are read; by default to the bfloat16 that the kernels hold.
    """
    section = section if section is not None else _section_beside(directory)
    method = section.get("quant_method", "compressed-tensors") if isinstance(section, dict) else "compressed-tensors"
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise CheckpointError(
            f"{directory}/config.json says quant_method {str(method)[:40]!r}; what is read here are "
            f"{', '.join(READERS)}, and float models"
        )
    section, in_bytes = taken_out(section)
    quantization = reader.read_section(section, directory, rounding)
    return Layout(method, reader.WEIGHT_PARTS, quantization, reader.check_linear, reader.read_linear, in_bytes)


def _section_beside(directory: Path) -> dict | None:
    for file, method in SECTION_FILES.items():
        if (directory / file).is_file():
            return {"quant_method": method} | read_json(directory / file)
    return None
