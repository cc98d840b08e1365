"""The walk over a model: modules of the float model in, tensors of the checkpoint out, one unit at a time."""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from checkpoints.formats.compressed_tensors import SCALES, linear_tensors
from checkpoints.formats.in_bytes import to_bytes
from checkpoints.formats.stored import BIAS
from checkpoints.journal import Snapshot
from checkpoints.meta import stored_tensors
from checkpoints.writer import CheckpointWriter
from qlinear.backends.cpu.arrays import host_array
from qlinear.grid import GridWeight
from qlinear.process import check_room
from quantization.distill import Distillation, Lesson, open_distillation, stored_floats, taught
from quantization.plan import Job
from quantization.precision import fast_float32
from quantization.resume import check_tally
from quantization.scaling import Scaling
from quantization.solve import fed, round_linears, solve_block
from quantization.streams import TOKENS, Streams
from quantization.tally import LinearLosses, Tally
from quantization.unit import Fed, Solution, Unit, full_name
from scales.awq import LayerLoss, watched_modules
from scales.observe import Observation
from scales.search import relative_loss


class Work:
    """Turns modules into tensors of the checkpoint, keeps count, and puts each step on record.

    streams: None where no text is read; writer: None on a rank that does not write, and keeps no count; lesson: None
    where nothing is distilled, and on such a rank; began: when it began by `time.perf_counter`, as if what earlier runs
    did had been done right before.
    """

    def __init__(
        self,
        job: Job,
        scaling: Scaling,
        streams: Streams | None,
        writer: CheckpointWriter | None,
        lesson: Lesson | None = None,
    ):
        self.job, self.scaling, self.streams, self.writer, self.lesson = job, scaling, streams, writer, lesson
        self.dtype = torch.float32 if streams else scaling.dtype
        self.tally = Tally()
        self._fit: Distillation | None = None
        self._fitted_so_far: tuple[dict, dict[str, Tensor]] | None = None
        self.began = time.perf_counter()

    def take_up(self) -> None:
        """Go on where a run stopped. Raises `CheckpointError` if its record makes no sense."""
        state, forward = self.job.ranks.told(self._read() if self.writer else None)
        if self.writer is None:
            self.tally.units, self.tally.quantized_names = self.job.ranks.told(None)
        else:
            self.job.ranks.told((self.tally.units, self.tally.quantized_names))
        if self.streams is not None:
            with self.writer.journal.reading() if self.writer else nullcontext():
                self.streams.take_up(state, forward)

    def _read(self) -> tuple[dict[str, Tensor], float]:
        """What the journal has: the count and what scaling has found are taken up, the samples' state is returned."""
        journal = self.writer.journal
        with journal.reading():
            record, kept = journal.record, journal.load_kept()
            self.tally = Tally.from_json(record["tally"])
            check_tally(self.tally, self.job, journal.stored())
            self.scaling.take_up(record["scaling"], kept)
            self.began = time.perf_counter() - _seconds(record["seconds"])
            state = journal.load_state()
            self._fitted_so_far = (record["fit"], state) if record["fit"] else None
            if self.streams is None:
                return {}, 0.0
            return state, _seconds(record["forward_seconds"])

    @property
    def text(self) -> dict | None:
        """What text the scales were searched or the codes chosen on, as far as that is known."""
        if self.streams is None and self.lesson is not None:
            return self.lesson.meta
        return self.streams.meta if self.streams else self.scaling.text

    def _snapshot(self, state: dict[str, Tensor]) -> Snapshot:
        found, kept = self.scaling.found()
        record = {"seconds": time.perf_counter() - self.began, "tally": self.tally.to_json(), "scaling": found}
        record["fit"] = self._fit and asdict(self._fit.result)
        record["grids"] = {name: [grid.bits, grid.group_size] for name, grid in self.job.grids.items()}
        if self.streams is None:
            return Snapshot(record, kept, state)
        record["forward_seconds"] = self.streams.forward_seconds
        return Snapshot(record, kept | {TOKENS: self.streams.tokens}, state)

    def _unit(self, index: int) -> Unit:
        name = self.job.plan.units[index]
        block = self.job.source.model.get_submodule(name)
        return Unit(index, name, block, self.job.plan.anatomies[index], self.streams and self.streams.calls[index])

    def quantize_unit(self, index: int) -> None:
        """Read a unit, scale it, write its linears quantized and everything else in bfloat16, let go of it."""
        source = self.job.source
        self._check_room(self.job.plan.units[index])
        source.materialize(self.job.plan.units[index], self.dtype)
        unit = self._unit(index)
        with fast_float32():
            losses, solution = self._solve(unit)
        if self.writer:
            self._add_unit(unit, losses, solution)
        source.release(unit.name)
        self.tally.units = index + 1
        self._end_step()

    def _add_unit(self, unit: Unit, losses: dict[str, LayerLoss], solution: Solution) -> None:
        for local, linear in unit.linears.items():
            name = full_name(unit.name, local)
            self._add_quantized(name, linear, solution.grids[local])
            self._count(name, losses.get(local), solution.losses.get(local), solution.fed.get(local))
        if solution.block:
            self.tally.blocks[unit.name] = solution.block
        self._add_float(unit.name, unit.block)

    def _end_step(self) -> None:
        """Put what is done on record, if that is worth it by now: all ranks tell where their samples stand."""
        due = self.job.ranks.told(self.writer and self.writer.journal.is_due)
        state = self.streams.state() if due and self.streams else {}
        if self.writer and due:
            self.writer.end_step(lambda: self._snapshot(state))
        elif self.writer:
            self.writer.flush()

    def _check_room(self, module: str) -> None:
        """For its weights in float32, what they are turned into, and what is computed of them on the way.

        Of a large block no more than some: experts are there one at a time.
        """
        held = self.job.source.model.get_submodule(module)
        check_room(min(3 * 4 * sum(tensor.numel() for _, tensor in stored_tensors(held)), 2**30))

    def _count(self, name: str, searched: LayerLoss | None, solved: float | None, fed: Fed | None) -> None:
        found = (searched.loss_rtn, searched.loss_awq) if searched else (None, None)
        ratio = searched.ratio if searched else None
        grid = self.job.grid_of(name)
        self.tally.layers.append(LinearLosses(name, grid.group_size, *found, solved, ratio, fed, grid.bits))

    def _solve(self, unit: Unit) -> tuple[dict[str, LayerLoss], Solution]:
        method = self.job.recipe.method
        grids = {local: self.job.grid_of(full_name(unit.name, local)) for local in unit.anatomy.linears}
        if self.streams is None:
            return self.scaling.apply(unit, None), round_linears(unit, method, grids, self.job.ranks)
        seen = self._look(unit)
        losses = self.scaling.apply(unit, seen)
        known = seen.statistics if seen else {}
        del seen  # lets go of the samples it holds
        task = self.streams.task(unit)
        if task is None:
            rounded = round_linears(unit, method, grids, self.job.ranks)
            return losses, replace(rounded, fed=fed(known))
        solution = solve_block(task, method, grids, known)
        del known  # before the block's weights are there twice, float and rounded
        self.streams.step(task, solution)
        return losses, solution

    def _look(self, unit: Unit) -> Observation | None:
        """What a search wants to see of the block, or what a solver does: its linears' inputs and its float outputs."""
        if self.scaling.looks:
            return self.streams.observe(unit, watched_modules(unit.anatomy))
        self.streams.pass_over(unit)
        return self.streams.observe_inputs(unit)

    def write_rest(self) -> None:
        """The output head, if it is to be quantized, and every tensor outside the units."""
        source, head = self.job.source, self.job.plan.head
        self._check_room(head)
        if self.job.recipe.lm_head and head not in self.tally.quantized_names:
            self._quantize_head(head)
            self._end_step()
        if self.streams is not None:
            self.streams.let_go()
        if self.writer is None or self._fitted_so_far:  # it is all written before anything is fitted
            return

        def snapshot() -> Snapshot:
            return self._snapshot({})

        for name in _owners(source.model, self.tally.written):
            source.materialize(name, torch.bfloat16)
            self._add_float(name, source.model.get_submodule(name), recurse=False)
            source.release(name)
            self.writer.end_step(snapshot)
        self.writer.end_step(snapshot, in_any_case=True)

    def distill(self) -> None:
        """Fit the scales of all that is written to the float model's predictions, where that is asked for."""
        if self.lesson is None or self.tally.distilled:
            return
        stored = self.writer.stored()
        self._fit = open_distillation(self.job, self.tally.quantized_names, stored)
        if self._fitted_so_far:
            with self.writer.journal.reading():
                self._fit.take_up(*self._fitted_so_far)
        with fast_float32():
            student = taught(self.job, self.lesson)
            with student.assembled(self._fit.linears, stored_floats(self.job, stored)):
                self._fit.run(student, self.lesson, self.job.watch, self._keep_fit)
        found = self._fit.found()
        self.writer.replace({f"{self.job.source.linear_in_files(name)}.{SCALES}": found[name] for name in found})
        self.tally.distilled, self._fit = self._fit.result, None
        self.writer.end_step(lambda: self._snapshot({}), in_any_case=True)

    def _keep_fit(self) -> None:
        self.writer.end_step(lambda: self._snapshot(self._fit.state()))

    def _quantize_head(self, name: str) -> None:
        """All ranks show what their samples make of it; the one that writes solves it."""
        source, grid = self.job.source, self.job.grid_of(name)
        statistics = self.streams.head_statistics() if self.streams else None
        if self.writer is None:
            return
        source.materialize(name, torch.float32)
        head = source.model.get_submodule(name)
        with fast_float32():
            with statistics.shrunk() if statistics else nullcontext() as gram:
                made = self.job.recipe.method.linear(head.weight.data, grid, gram)
            loss = statistics and relative_loss(made.dequantize(), head.weight.data, statistics.gram)
        self._add_quantized(name, head, made)
        self.tally.layers.append(LinearLosses(name, grid.group_size, None, None, loss, None, None, grid.bits))
        source.release(name)

    def _add_quantized(self, name: str, linear: nn.Linear, made: GridWeight) -> None:
        bias = None if linear.bias is None else linear.bias.data
        tensors = linear_tensors(made, bias, self.job.recipe.symmetric)
        base = self.job.source.linear_in_files(name)
        for part, tensor in tensors.items():
            self._add(f"{base}.{part}", tensor)
        self.tally.quantized_bytes += sum(tensor.nbytes for part, tensor in tensors.items() if part != BIAS)
        self.tally.quantized_weights += linear.weight.numel()
        self.tally.quantized_names.append(name)
        self.tally.written.update({f"{name}.weight", f"{name}.bias"})

    def _add_float(self, prefix: str, module: nn.Module, recurse: bool = True) -> None:
        for local, tensor in module.state_dict().items():
            name = full_name(prefix, local)
            if name not in self.tally.written and (recurse or "." not in local):
                stored, value = self.job.source.as_in_files(name, tensor)
                for part, of_it in self._in_parts(name, stored, value).items():
                    self._add(part, of_it)
                self.tally.written.add(name)

    def _in_parts(self, name: str, stored: str, value: Tensor) -> dict[str, Tensor]:
        """What is stored of a float tensor; stored: its name in the files."""
        if name != self.job.in_bytes:
            return {stored: value}
        parts = to_bytes(host_array(value.contiguous()), self.job.byte_group_size)
        found = {f"{stored.removesuffix('weight')}{part}": torch.from_numpy(array) for part, array in parts.items()}
        return {
            part: tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
            for part, tensor in found.items()
        }

    def _add(self, name: str, tensor: Tensor) -> None:
        self.writer.add(name, tensor)
        self.tally.bytes += tensor.nbytes


def _seconds(value: object) -> float:
    """Raises `ValueError` for what is no length of time, NaN too."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{value} seconds")
    return float(value)


def _owners(model: nn.Module, written: set[str]) -> list[str]:
    """Modules that own a tensor not yet written; a tied tensor counts for the first module that has it."""
    owners: dict[str, None] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in written and id(tensor) not in seen:
            owners[name.rpartition(".")[0]] = None
        seen.add(id(tensor))
    return list(owners)
