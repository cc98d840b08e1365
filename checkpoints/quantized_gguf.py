"""Run a `.gguf` file as it is: its codes on this program's kernels, where they lie on the same grid."""

from pathlib import Path

from torch import nn

from architectures.linears import is_linear
from checkpoints.formats.gguf import GgufSource
from checkpoints.formats.gguf_blocks import BLOCK_BYTES
from checkpoints.formats.stored import Rounding
from checkpoints.pretrained import PretrainedModel, open_gguf_source
from qlinear.errors import CheckpointError
from qlinear.packing import PackedWeight
from qlinear.replace import LinearWeight

FLOATS = ("F32", "F16", "BF16")


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and path.is_file()


class GgufCheckpoint:
    """A file whose linears are in blocks of Q4_0 and Q4_1.

    model: on meta; rounding: of the scales that were read so far. Raises `CheckpointError` or `ModelError`.
    """

    def __init__(self, path: Path):
        self._source = GgufSource(path)
        self._opened: PretrainedModel = open_gguf_source(self._source, path.stem)
        self.model: nn.Module = self._opened.model
        self.rounding = Rounding()
        self._stored = self._grid_linears(path)

    def _grid_linears(self, path: Path) -> dict[str, str]:
        """The stored name of the weight of each linear that runs on the kernels.

        The head may be anything, as ever; other linears in blocks that lie on no grid of this program would run as
        floats, at a quarter of the speed that is expected of such a file.
        """
        head = self.model.get_output_embeddings()
        linears = {name: module for name, module in self.model.named_modules() if is_linear(module)}
        stored = {name: self._opened.stored_as(f"{name}.weight") for name in linears}
        kinds = {name: self._source.kind(of) for name, of in stored.items() if of is not None}
        tied = head.weight is self.model.get_input_embeddings().weight
        on_grid = {
            name: stored[name]
            for name, kind in kinds.items()
            if kind in BLOCK_BYTES and not (tied and linears[name] is head)
        }
        others = {kind for name, kind in kinds.items() if name not in on_grid and linears[name] is not head}
        if others - set(FLOATS) or not on_grid:
            raise CheckpointError(
                f"{path} holds linears as {', '.join(sorted(others))}; what runs as it is are "
                f"{' and '.join(BLOCK_BYTES)}; quantize it: give it as `model_name`"
            )
        return on_grid

    @property
    def names(self) -> list[str]:
        """The linears that run on the kernels."""
        return list(self._stored)

    @property
    def files(self) -> tuple[Path, ...]:
        return self._source.files

    @property
    def tokenizer(self):
        return self._opened.tokenizer

    def read_linear(self, name: str) -> LinearWeight:
        weight = PackedWeight.pack(self._source.grid(self._stored[name], self.rounding))
        bias = self._opened.stored_as(f"{name}.bias")
        if bias is None:
            return LinearWeight(weight)
        with self._source.borrow(bias) as stored:
            return LinearWeight(weight, stored.clone())

    def read_others(self) -> None:
        """Bring in everything that is on meta still, as floats."""
        self._opened.load()

    def notes(self) -> tuple[str, ...]:
        if self.rounding.largest == 0:
            return ()
        return (
            f"scales of the file, half precision, rounded to the bfloat16 that the kernels hold: by "
            f"{self.rounding.mean:.2%} on average, {self.rounding.largest:.2%} at most",
        )
