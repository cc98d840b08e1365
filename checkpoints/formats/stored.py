"""What readers of quantized formats share: a linear as a checkpoint describes it, and scales as kernels hold them.

A reader is a module of this folder with `WEIGHT_PARTS` (what may stand in the place of "weight" in the names of a
quantized linear's tensors, the one that every such linear has first), `read_section`, `check_linear` and `read_linear`.
What it gives is the grid of this program: integer codes and zero points, a bfloat16 scale a group.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from checkpoints.sources import FLOATS, TensorSource, is_finite
from qlinear.errors import CheckpointError
from qlinear.sizes import GROUP_SIZES

BIAS = "bias"


# Values looked at together when a rounding is measured.
CHUNK = 2**22


@dataclass
class Rounding:
    """How far floats were moved to be of another type, relative to each; zeros do not change and are not counted.

    dtype: that they become; None: they stay as they are. energy, lost: sums of squares, of the values and the changes.
    """

    dtype: torch.dtype | None = torch.bfloat16
    count: int = 0
    total: float = 0.0
    largest: float = 0.0
    energy: float = 0.0
    lost: float = 0.0

    def __call__(self, name: str, values: Tensor) -> Tensor:
        """The values in that type, and the change put on record. Raises `CheckpointError` for one out of its range."""
        if self.dtype in (None, values.dtype):
            return values
        made = values.to(self.dtype)
        if not is_finite(made):
            limit = torch.finfo(self.dtype).max
            raise CheckpointError(
                f"{name} holds {float(values.abs().max()):.3g}, more than the {limit:.3g} of {self.dtype}; "
                f"the format compressed-tensors keeps it"
            )
        for exact, rounded in zip(values.reshape(-1).split(CHUNK), made.reshape(-1).split(CHUNK), strict=True):
            self.tally(exact.to(torch.float64), rounded)
        return made

    def tally(self, exact: Tensor, rounded: Tensor) -> None:
        """Put on record what these values have become."""
        change = (rounded.to(torch.float64) - exact).abs()
        self.energy, self.lost = self.energy + float(exact.square().sum()), self.lost + float(change.square().sum())
        there = exact != 0
        relative = change[there] / exact[there].abs()
        self.count += relative.numel()
        if relative.numel():
            self.total += float(relative.sum())
            self.largest = max(self.largest, float(relative.max()))

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)

    @property
    def rms(self) -> float:
        """The size of all changes together to that of all values."""
        return (self.lost / self.energy) ** 0.5 if self.energy else 0.0


@dataclass(frozen=True)
class StoredLinear:
    """A quantized linear whose stored shapes are right.

    shape: (out_features, in_features); groups: of a row, as stored; symmetric: no zero points are stored; has_bias:
    whether one is stored; takes_bias: whether the linear has one.
    """

    shape: tuple[int, int]
    bits: int
    groups: int
    symmetric: bool
    has_bias: bool
    takes_bias: bool

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.groups


@dataclass(frozen=True)
class Tensors:
    """Reads the tensors of the linear `name`, which stay lent until `lent` is closed."""

    name: str
    source: TensorSource
    lent: ExitStack = field(repr=False)

    def floats(self, part: str) -> Tensor:
        """Raises `CheckpointError` for what is no float, or not finite."""
        tensor = self._borrow(part)
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"{self.name}.{part} is stored as {tensor.dtype}, not as floats")
        check_finite(f"{self.name}.{part}", tensor)
        return tensor

    def words(self, part: str, dtype: torch.dtype = torch.int32) -> Tensor:
        """Raises `CheckpointError` for what is not of that type."""
        tensor = self._borrow(part)
        if tensor.dtype != dtype:
            wanted = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{self.name}.{part}: packed weights have to be {wanted}, not {tensor.dtype}")
        return tensor

    def integers(self, part: str) -> Tensor:
        tensor = self._borrow(part)
        if tensor.dtype not in (torch.int32, torch.int64):
            raise CheckpointError(f"{self.name}.{part} is stored as {tensor.dtype}, not as integers")
        return tensor

    def bias(self, found: StoredLinear) -> Tensor | None:
        """None where there is none, or where a linear without bias is stored with one of zeros, as GPTQ programs do."""
        if not found.has_bias:
            return None
        bias = self.floats(BIAS)
        if found.takes_bias:
            return bias
        if bias.any():
            raise CheckpointError(f"{self.name}.bias is stored, but the model of the config has none there")
        return None

    def _borrow(self, part: str) -> Tensor:
        return self.lent.enter_context(self.source.borrow(f"{self.name}.{part}"))


def linear_of(model: nn.Module, name: str) -> tuple[int, int, bool]:
    """out_features, in_features and whether it has a bias. Raises `CheckpointError` where the model has no such."""
    try:
        linear = model.get_submodule(name)
        return linear.out_features, linear.in_features, linear.bias is not None
    except AttributeError as error:
        raise CheckpointError(
            f"the checkpoint quantizes {name}, which the model of its config does not have"
        ) from error


def check_shapes(
    name: str, stored: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...] | None], what: str
) -> None:
    """Raise `CheckpointError` for a part in another shape; None: it is not to be there; what: of the config."""
    for part, shape in expected.items():
        found = stored.get(f"{name}.{part}")
        if found != shape:
            raise CheckpointError(f"{name}.{part} is {found} on disk, {shape} by the config ({what})")


def runs_in(group_size: int) -> int | None:
    """The largest group size of the kernels that a group can be cut into; None if there is none.

    Groups of a size that the kernels lack, a whole row say, run exactly when their scales are repeated.
    """
    return max((size for size in GROUP_SIZES if group_size % size == 0), default=None)


def check_group_size(name: str, group_size: int) -> None:
    if group_size <= 0 or runs_in(group_size) is None:
        raise CheckpointError(
            f"{name} is in groups of {group_size}; what runs here are multiples of {GROUP_SIZES[0]}, the size of the "
            f"smallest group"
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raise `CheckpointError` for a stored tensor with a value that is infinite or NaN."""
    if value.is_floating_point() and not is_finite(value):
        raise CheckpointError(f"{name} holds a value that is not finite; quantize the model again")
