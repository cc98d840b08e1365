"""A quantized checkpoint as a `.gguf` file."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from checkpoints import quantized
from checkpoints.formats.gguf_write import Content, Written, rehearse, write_gguf
from checkpoints.formats.readers import Layout
from checkpoints.formats.stored import Rounding
from checkpoints.pretrained import PretrainedModel
from checkpoints.sources import TensorSource
from qlinear.grid import GridWeight
from qlinear.progress import Note, Watcher, silent


class _Stored:
    """The tensors of a checkpoint by the model's names: `checkpoints.formats.gguf_write.Weights`."""

    def __init__(self, layout: Layout, model: nn.Module, source: TensorSource):
        self.model, self._layout, self._source = model, layout, source
        self._found = quantized.check_tensors(model, source, layout)
        self.bits = {name: linear.bits for name, linear in self._found.items()}
        self.symmetric = {name: linear.symmetric for name, linear in self._found.items()}
        quantized.check_others(model, source, self._found)
        self._names: dict[Tensor, list[str]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in source.shapes:
                self._names.setdefault(tensor, []).append(name)

    def grid(self, linear: str) -> GridWeight:
        with ExitStack() as lent:
            return self._layout.read(linear, self._found[linear], self._source, lent).weight.unpack()

    def tensor(self, name: str) -> Tensor:
        """A tied one by whichever of its names it is stored."""
        tensor = self.model.state_dict(keep_vars=True)[name]
        return quantized.read_other(tensor, self._names[tensor][:1], self._source)


@dataclass(frozen=True)
class _Unquantized:
    """A float model, of which only the shapes are looked at."""

    model: nn.Module
    bits: dict[str, int] = field(default_factory=dict)
    symmetric: dict[str, bool] = field(default_factory=dict)

    def grid(self, linear: str) -> GridWeight:
        raise KeyError(linear)

    def tensor(self, name: str) -> Tensor:
        raise KeyError(name)


def rehearse_gguf(source: PretrainedModel, output: Path, overwrite: bool, lm_head: bool) -> None:
    """Raise what `export_gguf` will of a checkpoint that is yet to be made of this model, as far as that tells."""
    content = Content(source.name, _Unquantized(source.model), source.tokenizer, _ends(source.model))
    rehearse(output, content, overwrite, lm_head)


def _ends(model: nn.Module) -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return [ends] if isinstance(ends, int) else list(ends or [])


def export_gguf(
    directory: Path,
    output: Path,
    floats: str = "q8_0",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    watch: Watcher = silent,
) -> Written:
    """Write a checkpoint as a file that llama.cpp runs. floats: q8_0, f16 or bf16, for matrices that are not quantized.

    watch: is told what differs from the checkpoint. Raises `CheckpointError` or `ModelError` in one line, before
    anything is written where it can be known by then.
    """
    layout, model, source = quantized.open_stored(directory, trust_remote_code, Rounding(None))
    with quantized.named(directory):
        content = Content(
            name=directory.resolve().name,
            weights=_Stored(layout, model, source),
            tokenizer=quantized.read_tokenizer(directory, trust_remote_code),
            ends=_ends(model),
        )
        written = write_gguf(output, content, floats, overwrite, watch)
    for note in written.notes:
        watch(Note(note))
    return written
