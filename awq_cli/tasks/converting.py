"""Modules of the float model -> tensors of the checkpoint, one module at a time, and the count of them."""

import time
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from awq_cli.tasks.calibrating import TOKENS, Calibration
from awq_cli.tasks.plan import Plan, full_name, unit_linears
from awq_cli.tasks.scaling import Scaling
from checkpoints.journal import Journal, Snapshot
from checkpoints.pretrained import PretrainedModel
from checkpoints.writer import CheckpointWriter
from qlinear.grid import GridWeight
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight
from scales.awq import LayerLoss, watched_modules
from scales.observe import Observation
from scales.precision import fast_float32
from scales.search import relative_loss
from scales.solve import Method, round_linears, solve_block
from scales.task import BlockErrors, Solution


@dataclass(frozen=True)
class Size:
    """Bits per weight count scales and zero points; the first figure is of the quantized layers, the last of all."""

    float_bytes: int
    quantized_bytes: int
    bits_per_weight: float
    bits_per_weight_with_embeddings: float


@dataclass(frozen=True)
class Layer:
    """Relative squared output errors on the calibration text, None where none was read; ratio: AWQ's exponent.

    loss_rtn, loss_awq: plainly rounded, on what the float model hands the layer, without AWQ and with it; loss_solver:
    of the solver's codes, on what the quantized layers before it hand over.
    """

    name: str
    group_size: int
    loss_rtn: float | None
    loss_awq: float | None
    loss_solver: float | None
    ratio: float | None


@dataclass
class Tally:
    """What has become of the model so far. units: how many are done; written: the float model's names for it all."""

    units: int = 0
    layers: list[Layer] = field(default_factory=list)
    blocks: dict[str, BlockErrors] = field(default_factory=dict)
    quantized_names: list[str] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    quantized_bytes: int = 0
    quantized_weights: int = 0
    bytes: int = 0

    def to_json(self) -> dict:
        layers = [asdict(layer) for layer in self.layers]
        blocks = {name: asdict(errors) for name, errors in self.blocks.items()}
        return {**vars(self), "layers": layers, "blocks": blocks, "written": sorted(self.written)}

    @classmethod
    def from_json(cls, content: dict) -> "Tally":
        layers = [Layer(**layer) for layer in content["layers"]]
        blocks = {name: BlockErrors(**errors) for name, errors in content["blocks"].items()}
        return cls(**{**content, "layers": layers, "blocks": blocks, "written": set(content["written"])})


class Work:
    """Turns modules into tensors of the checkpoint, keeps count, and puts each step on record.

    began: when it began by `time.perf_counter`, as if what earlier runs did had been done right before.
    """

    def __init__(
        self,
        source: PretrainedModel,
        plan: Plan,
        bits: int,
        method: Method,
        scaling: Scaling,
        calibration: Calibration | None,
        writer: CheckpointWriter,
    ):
        self.source, self.plan, self.bits, self.writer = source, plan, bits, writer
        self.method, self.scaling, self.calibration = method, scaling, calibration
        self.dtype = torch.float32 if calibration else scaling.dtype
        self.tally = Tally()
        self.began = time.perf_counter()

    def take_up(self, journal: Journal) -> None:
        """Go on where a run stopped. Raises `CheckpointError` if its record makes no sense."""
        with journal.reading():
            record, kept = journal.record, journal.load_kept()
            self.tally = Tally.from_json(record["tally"])
            self.scaling.take_up(record["scaling"], kept)
            if self.calibration is not None:
                self.calibration.take_up(journal.load_state(), float(record["forward_seconds"]))
            self.began = time.perf_counter() - float(record["seconds"])

    @property
    def text(self) -> dict | None:
        """What text the scales were searched or the codes chosen on, as far as that is known."""
        return self.calibration.meta if self.calibration else getattr(self.scaling, "calibration", None)

    def _snapshot(self) -> Snapshot:
        found, kept = self.scaling.found()
        record = {"seconds": time.perf_counter() - self.began, "tally": self.tally.to_json(), "scaling": found}
        if self.calibration is None:
            return Snapshot(record, kept, {})
        record["forward_seconds"] = self.calibration.forward_seconds
        return Snapshot(record, kept | {TOKENS: self.calibration.tokens}, self.calibration.state())

    def quantize_unit(self, index: int, unit: str) -> None:
        """Read a unit, scale it, write its linears quantized and everything else in bfloat16, let go of it."""
        self.source.materialize(unit, self.dtype)
        block = self.source.model.get_submodule(unit)
        with fast_float32():
            losses, solution = self._solve(index, block)
        for local, linear in unit_linears(self.source.model, unit).items():
            name, loss = full_name(unit, local), losses.get(local)
            self._add_quantized(name, linear, solution.grids[local])
            found = (loss.loss_rtn, loss.loss_awq) if loss else (None, None)
            ratio = loss.ratio if loss else None
            self.tally.layers.append(Layer(name, self.plan.group_size, *found, solution.losses.get(local), ratio))
        if solution.block:
            self.tally.blocks[unit] = solution.block
        self._add_float(unit, block)
        self.source.release(unit)
        self.tally.units = index + 1
        self.writer.end_step(self._snapshot)

    def _solve(self, index: int, block: nn.Module) -> tuple[dict[str, LayerLoss], Solution]:
        if self.calibration is None:
            losses = self.scaling.apply(index, block, None)
            linears = unit_linears(self.source.model, self.plan.units[index])
            return losses, round_linears(linears, self.method, self.bits, self.plan.group_size)
        seen = self._look(index, block)
        losses = self.scaling.apply(index, block, seen)
        known = seen and seen.statistics
        del seen  # lets go of the samples it holds
        task = self.calibration.task(index, block)
        if not task.inputs:
            return losses, round_linears(task.linears, self.method, self.bits, self.plan.group_size)
        solution = solve_block(task, self.method, self.bits, self.plan.group_size, known)
        del known  # before the block's weights are there twice, float and rounded
        self.calibration.step(task, solution)
        return losses, solution

    def _look(self, index: int, block: nn.Module) -> Observation | None:
        """What a search wants to see of the block; where none looks, a block's solver may want its float outputs."""
        if self.scaling.mode == "run":
            return self.calibration.observe(index, block, watched_modules(self.plan.architecture))
        if self.calibration.hidden:
            self.calibration.pass_over(index, block)
        return None

    def write_rest(self) -> None:
        """The output head, if it is to be quantized, and every tensor outside the units."""
        model = self.source.model
        if self.plan.head_group_size is not None and self.plan.head not in self.tally.quantized_names:
            self._quantize_head(self.plan.head, self.plan.head_group_size)
            self.writer.end_step(self._snapshot)
        if self.calibration is not None:
            self.calibration.let_go()
        for name in _owners(model, self.tally.written):
            self.source.materialize(name, torch.bfloat16)
            self._add_float(name, model.get_submodule(name), recurse=False)
            self.source.release(name)
            self.writer.end_step(self._snapshot)
        self.writer.end_step(self._snapshot, in_any_case=True)

    def _quantize_head(self, name: str, group_size: int) -> None:
        statistics = self.calibration.head_statistics() if self.calibration and self.calibration.rounded else None
        self.source.materialize(name, torch.float32)
        head = self.source.model.get_submodule(name)
        with fast_float32():
            grid = self.method.linear(head.weight.data, self.bits, group_size, statistics and statistics.gram)
            loss = statistics and relative_loss(grid.decode(), head.weight.data, statistics.gram)
        self._add_quantized(name, head, grid)
        self.tally.layers.append(Layer(name, group_size, None, None, loss, None))
        self.source.release(name)

    def _add_quantized(self, name: str, linear: nn.Linear, grid: GridWeight) -> None:
        bias = None if linear.bias is None else linear.bias.data.to(torch.bfloat16)
        tensors = QLinearPerGrp(PackedWeight.pack(grid), bias).state_dict()
        for part, tensor in tensors.items():
            self._add(f"{name}.{part}", tensor)
        self.tally.quantized_bytes += sum(tensor.nbytes for part, tensor in tensors.items() if part != "bias")
        self.tally.quantized_weights += linear.weight.numel()
        self.tally.quantized_names.append(name)
        self.tally.written.update({f"{name}.weight", f"{name}.bias"})

    def _add_float(self, prefix: str, module: nn.Module, recurse: bool = True) -> None:
        for local, tensor in module.state_dict().items():
            name = full_name(prefix, local)
            if name not in self.tally.written and (recurse or "." not in local):
                self._add(name, tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)
                self.tally.written.add(name)

    def _add(self, name: str, tensor: Tensor) -> None:
        self.writer.add(name, tensor)
        self.tally.bytes += tensor.nbytes

    def size(self) -> Size:
        weights = self.source.float_bytes // 2  # bfloat16
        return Size(
            self.source.float_bytes,
            self.tally.bytes,
            8 * self.tally.quantized_bytes / self.tally.quantized_weights,
            8 * self.tally.bytes / weights,
        )


def _owners(model: nn.Module, written: set[str]) -> list[str]:
    """Modules that own a tensor not yet written; a tied tensor counts for the first module that has it."""
    owners: dict[str, None] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in written and id(tensor) not in seen:
            owners[name.rpartition(".")[0]] = None
        seen.add(id(tensor))
    return list(owners)
