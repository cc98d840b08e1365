"""Make a 3- or 4-bit checkpoint of a float model, one decoder block at a time."""

import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from awq_cli import __version__, paths
from awq_cli.memory import peak_rss_bytes
from awq_cli.tasks.calibrating import Calibration, open_calibration
from awq_cli.tasks.plan import Plan, full_name, make_plan, unit_linears
from awq_cli.tasks.progress import Progress
from awq_cli.tasks.scaling import Scaling, open_scaling
from checkpoints.pretrained import PretrainedModel, open_pretrained
from checkpoints.writer import CheckpointWriter, quantization_section
from qlinear.errors import ModelError
from qlinear.grid import GridWeight
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight
from qlinear.solvers import rtn
from scales.awq import LayerLoss, watched_modules
from scales.precision import onednn_float32
from scales.search import relative_loss
from scales.solve import METHODS, Method, round_linears, solve_block
from scales.task import BlockErrors, Solution


@dataclass(frozen=True)
class Request:
    model_name: str
    w_bit: int
    group_size: int | None
    awq: str
    scales: str | None
    solver: str
    lm_head: bool
    lm_head_group_size: int
    calib_data: str
    n_samples: int
    seqlen: int
    seed: int
    flash_attention: bool | None
    output: str | None
    overwrite: bool
    trust_remote_code: bool


@dataclass(frozen=True)
class Seconds:
    """load: opening the model and the first block's inputs; search: all blocks; total: up to the checkpoint.

    forward: what the float32 forward passes over the calibration text alone took of the search.
    """

    load: float
    search: float
    total: float
    forward: float


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


@dataclass(frozen=True)
class Result:
    """blocks: by name; empty where every linear was solved by itself."""

    task: str
    model: str
    w_bit: int
    group_size: int
    lm_head: bool
    awq: str
    solver: str
    flash_attention: bool
    calibration: dict | None
    scales: str | None
    fallback_blocks: list[str]
    seconds: Seconds
    size: Size
    peak_rss_bytes: int
    checkpoint: str
    layers: list[Layer]
    blocks: dict[str, BlockErrors]


def run(request: Request, progress: Progress) -> Result:
    start = time.perf_counter()
    source = open_pretrained(request.model_name, request.trust_remote_code)
    plan = make_plan(source, request.awq, request.group_size, request.lm_head_group_size if request.lm_head else None)
    if request.group_size is None:
        sizes = ", ".join(map(str, paths.DEFAULT_GROUP_SIZES))
        progress.note(f"group size {plan.group_size}: the largest of {sizes} that divides every layer")
    with CheckpointWriter(_directory(source.name, request, plan), request.overwrite) as writer:
        scaling = open_scaling(request, source, plan, _quantizer(request.w_bit, plan.group_size), progress)
        method = METHODS[request.solver]
        calibration = _calibration(request, source, plan, scaling, progress)
        opened = time.perf_counter()
        work = _Work(source, plan, request.w_bit, method, scaling, calibration, writer)
        for index, unit in progress.track(enumerate(plan.units), len(plan.units), "blocks"):
            work.quantize_unit(index, unit)
        searched = time.perf_counter()
        work.write_rest()
        read = calibration.meta if calibration else getattr(scaling, "calibration", None)
        scaling.save(read)
        forward = calibration.forward_seconds if calibration else 0.0
        result = Result(
            "quantize",
            source.name,
            request.w_bit,
            plan.group_size,
            request.lm_head,
            scaling.mode,
            request.solver,
            bool(request.flash_attention),
            read,
            str(scaling.path) if scaling.path else None,
            scaling.fallback_blocks,
            Seconds(opened - start, searched - opened, time.perf_counter() - start, forward),
            work.size(),
            peak_rss_bytes(),
            str(writer.directory),
            work.layers,
            work.blocks,
        )
        _finish(writer, source, plan, work, request, result)
    return result


def _directory(model: str, request: Request, plan: Plan) -> Path:
    if request.output is not None:
        return Path(request.output)
    return paths.MODELS / paths.checkpoint_name(
        model,
        request.w_bit,
        plan.group_size,
        request.awq != "none",
        request.solver,
        request.lm_head,
        bool(request.flash_attention),
    )


def _quantizer(bits: int, group_size: int):
    """What the search rounds its candidates with, whichever way the codes are chosen in the end."""

    def quantize(weight: Tensor) -> Tensor:
        return rtn(weight, bits, group_size).decode()

    return quantize


def _calibration(
    request: Request, source: PretrainedModel, plan: Plan, scaling: Scaling, progress: Progress
) -> Calibration | None:
    """The calibration text, if the search or the solver wants to see it. Raises `ModelError` where it cannot be run."""
    reads = METHODS[request.solver].reads_text(scaling.mode != "none")
    if not reads and scaling.mode != "run":
        return None
    if plan.architecture is None:
        raise ModelError(f"--solver {request.solver} needs to know the blocks of {source.name}; use rtn or hqq")
    return open_calibration(request, source, plan, reads, progress)


class _Work:
    """Turns modules into tensors of the checkpoint, and keeps count."""

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
        self.layers: list[Layer] = []
        self.blocks: dict[str, BlockErrors] = {}
        self.quantized_names: set[str] = set()
        self._written: set[str] = set()
        self._quantized_bytes = self._quantized_weights = self._bytes = 0

    def quantize_unit(self, index: int, unit: str) -> None:
        """Read a unit, scale it, write its linears quantized and everything else in bfloat16, let go of it."""
        self.source.materialize(unit, self.dtype)
        block = self.source.model.get_submodule(unit)
        with onednn_float32():
            losses, solution = self._solve(index, block)
        for local, linear in unit_linears(self.source.model, unit).items():
            name, loss = full_name(unit, local), losses.get(local)
            self._add_quantized(name, linear, solution.grids[local])
            found = (loss.loss_rtn, loss.loss_awq) if loss else (None, None)
            ratio = loss.ratio if loss else None
            self.layers.append(Layer(name, self.plan.group_size, *found, solution.losses.get(local), ratio))
        if solution.block:
            self.blocks[unit] = solution.block
        self._add_float(unit, block)
        self.source.release(unit)

    def _solve(self, index: int, block: nn.Module) -> tuple[dict[str, LayerLoss], Solution]:
        if self.calibration is None:
            losses = self.scaling.apply(index, block, None)
            linears = unit_linears(self.source.model, self.plan.units[index])
            return losses, round_linears(linears, self.method, self.bits, self.plan.group_size)
        seen = self.calibration.observe(index, block, watched_modules(self.plan.architecture))
        losses = self.scaling.apply(index, block, seen)
        task = self.calibration.task(index, block)
        if not task.inputs:
            return losses, round_linears(task.linears, self.method, self.bits, self.plan.group_size)
        solution = solve_block(task, self.method, self.bits, self.plan.group_size)
        self.calibration.step(task, solution)
        return losses, solution

    def write_rest(self) -> None:
        """The output head, if it is to be quantized, and every tensor outside the units."""
        model = self.source.model
        if self.plan.head_group_size is not None:
            self._quantize_head(self.plan.head, self.plan.head_group_size)
        for name in _owners(model, self._written):
            self.source.materialize(name, torch.bfloat16)
            self._add_float(name, model.get_submodule(name), recurse=False)
            self.source.release(name)

    def _quantize_head(self, name: str, group_size: int) -> None:
        statistics = self.calibration.head_statistics() if self.calibration and self.calibration.rounded else None
        self.source.materialize(name, torch.float32)
        head = self.source.model.get_submodule(name)
        with onednn_float32():
            grid = self.method.linear(head.weight.data, self.bits, group_size, statistics and statistics.gram)
            loss = statistics and relative_loss(grid.decode(), head.weight.data, statistics.gram)
        self._add_quantized(name, head, grid)
        self.layers.append(Layer(name, group_size, None, None, loss, None))
        self.source.release(name)

    def _add_quantized(self, name: str, linear: nn.Linear, grid: GridWeight) -> None:
        bias = None if linear.bias is None else linear.bias.data.to(torch.bfloat16)
        tensors = QLinearPerGrp(PackedWeight.pack(grid), bias).state_dict()
        for part, tensor in tensors.items():
            self._add(f"{name}.{part}", tensor)
        self._quantized_bytes += sum(tensor.nbytes for part, tensor in tensors.items() if part != "bias")
        self._quantized_weights += linear.weight.numel()
        self.quantized_names.add(name)
        self._written.update({f"{name}.weight", f"{name}.bias"})

    def _add_float(self, prefix: str, module: nn.Module, recurse: bool = True) -> None:
        for local, tensor in module.state_dict().items():
            name = full_name(prefix, local)
            if name not in self._written and (recurse or "." not in local):
                self._add(name, tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)
                self._written.add(name)

    def _add(self, name: str, tensor: Tensor) -> None:
        self.writer.add(name, tensor)
        self._bytes += tensor.nbytes

    def size(self) -> Size:
        weights = self.source.float_bytes // 2  # bfloat16
        return Size(
            self.source.float_bytes,
            self._bytes,
            8 * self._quantized_bytes / self._quantized_weights,
            8 * self._bytes / weights,
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


def _finish(
    writer: CheckpointWriter, source: PretrainedModel, plan: Plan, work: _Work, request: Request, result: Result
) -> None:
    head = (plan.head, plan.head_group_size) if plan.head_group_size else None
    if head is not None:
        source.config.tie_word_embeddings = False
    kept = [
        name
        for name, module in source.model.named_modules()
        if isinstance(module, nn.Linear) and name not in work.quantized_names
    ]
    section = quantization_section(request.w_bit, plan.group_size, head, kept)
    packages = ("torch", "transformers", "compressed-tensors")
    recipe = {
        **asdict(result),
        "fingerprint": source.fingerprint,
        "options": asdict(request),
        "versions": {"run-awq": __version__, **{name: version(name) for name in packages}},
    }
    writer.finish(source.config, source.generation_config, source.tokenizer, section, recipe)
