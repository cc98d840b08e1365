"""What has become of a model: the count that a run keeps, puts on record, and tells in the end."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field

from torch import Tensor

from checkpoints.formats.in_bytes import BITS as BITS_IN_BYTES
from checkpoints.meta import stored_tensors
from quantization.plan import Job
from quantization.unit import BlockErrors, Distilled, Fed


@dataclass(frozen=True)
class Size:
    """Bits per weight count scales and zero points; the first figure is of the quantized layers, the last of all."""

    float_bytes: int
    quantized_bytes: int
    bits_per_weight: float
    bits_per_weight_with_embeddings: float


def least_bytes(job: Job) -> int:
    """What the tensors of a checkpoint take at least, known before the first is read.

    As if every matrix of the units, and of the head if asked for, were quantized; all else is in bfloat16, but for the
    embedding where 8 bits are asked for.
    """
    recipe, plan = job.recipe, job.plan
    mixed = recipe.bits_per_weight

    def bits(name: str, dimensions: int) -> float:
        owner = name.rpartition(".")[0]
        if dimensions < 2:
            return 16
        if name == job.in_bytes:
            return BITS_IN_BYTES + 16 / job.byte_group_size
        if owner == plan.head:
            return (mixed or job.head_grid.bits_per_weight) if recipe.lm_head else 16
        quantized = any(owner == unit or owner.startswith(f"{unit}.") for unit in plan.units)
        return (mixed or job.grid.bits_per_weight) if quantized else 16

    names: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in stored_tensors(job.source.model):
        names.setdefault(id(tensor), (name, tensor))
    return int(sum(tensor.numel() * bits(name, tensor.dim()) for name, tensor in names.values()) / 8)


@dataclass(frozen=True)
class LinearLosses:
    """Relative squared output errors of one linear, None where no text was read; ratio: AWQ's exponent.

    loss_rtn, loss_awq: plainly rounded, without AWQ and with it; loss_solver: of the solver's codes, where it reads
    text. All on what the text makes of the layers before, quantized where the solver wants to see them so. fed: on how
    many tokens, and whose.
    """

    name: str
    group_size: int
    loss_rtn: float | None
    loss_awq: float | None
    loss_solver: float | None
    ratio: float | None
    fed: Fed | None
    w_bit: int

    @property
    def loss_saved(self) -> float | None:
        """That of the codes in the checkpoint; None where it is not known."""
        return self.loss_awq if self.loss_solver is None else self.loss_solver


@dataclass(frozen=True)
class GridRecord:
    """How many linears are on one grid."""

    w_bit: int
    group_size: int
    linears: int


@dataclass
class Tally:
    """What has become of the model so far. units: how many are done; written: the float model's names for it all."""

    units: int = 0
    layers: list[LinearLosses] = field(default_factory=list)
    blocks: dict[str, BlockErrors] = field(default_factory=dict)
    distilled: Distilled | None = None
    quantized_names: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    quantized_bytes: int = 0
    quantized_weights: int = 0
    bytes: int = 0

    def grids(self) -> list[GridRecord]:
        """Those with most linears first."""
        counted = Counter((layer.w_bit, layer.group_size) for layer in self.layers)
        return [GridRecord(*grid, count) for grid, count in counted.most_common()]

    def size(self, float_bytes: int) -> Size:
        """float_bytes: all weights of the float model in bfloat16."""
        return Size(
            float_bytes,
            self.bytes,
            8 * self.quantized_bytes / self.quantized_weights,
            8 * self.bytes / (float_bytes // 2),
        )

    def to_json(self) -> dict:
        layers = [asdict(layer) for layer in self.layers]
        blocks = {name: asdict(errors) for name, errors in self.blocks.items()}
        distilled = self.distilled and asdict(self.distilled)
        changed = {"layers": layers, "blocks": blocks, "distilled": distilled, "written": sorted(self.written)}
        return {**vars(self), **changed}

    @classmethod
    def from_json(cls, content: dict) -> "Tally":
        layers = [LinearLosses(**{**layer, "fed": layer["fed"] and Fed(**layer["fed"])}) for layer in content["layers"]]
        blocks = {name: BlockErrors(**_numbers(errors)) for name, errors in content["blocks"].items()}
        distilled = content["distilled"] and Distilled(**content["distilled"])
        changed = {"layers": layers, "blocks": blocks, "distilled": distilled, "written": set(content["written"])}
        return cls(**{**content, **changed})


def _numbers(errors: dict) -> dict:
    """JSON has no word for what is no number."""
    return {name: math.nan if error is None else error for name, error in errors.items()}
