"""Make a 3- or 4-bit checkpoint of a float model, one decoder block at a time."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from awq_cli import paths
from awq_cli.memory import peak_rss_bytes
from awq_cli.options import DEFAULT_SOLVERS
from awq_cli.tasks.calibrating import TOKENS, Calibration, open_calibration
from awq_cli.tasks.converting import Layer, Size, Work
from awq_cli.tasks.plan import Plan, make_plan
from awq_cli.tasks.progress import Progress
from awq_cli.tasks.resuming import as_it_began, marks, text_marks, told_if_stopped, versions
from awq_cli.tasks.scaling import Scaling, open_scaling
from checkpoints.journal import Journal
from checkpoints.pretrained import PretrainedModel, open_pretrained
from checkpoints.writer import CheckpointWriter, quantization_section
from qlinear.errors import ModelError
from qlinear.solvers import rtn
from scales.solve import METHODS
from scales.task import BlockErrors


@dataclass(frozen=True)
class Request:
    model_name: str
    w_bit: int
    group_size: int | None
    awq: str
    scales: str | None
    solver: str | None
    lm_head: bool
    lm_head_group_size: int
    calib_data: str
    n_samples: int
    seqlen: int
    seed: int
    flash_attention: bool | None
    output: str | None
    overwrite: bool
    resume: bool
    trust_remote_code: bool


@dataclass(frozen=True)
class Seconds:
    """load: opening the model and the first block's inputs; search: all blocks; total: up to the checkpoint.

    forward: what the float32 forward passes over the calibration text alone took of the search. Of a run that was
    resumed: load counts the last time, the others count what was kept of the earlier ones too.
    """

    load: float
    search: float
    total: float
    forward: float


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
    request = replace(request, solver=request.solver or DEFAULT_SOLVERS[request.awq])
    source = open_pretrained(request.model_name, request.trust_remote_code)
    plan = make_plan(source, request.awq, request.group_size, request.lm_head_group_size if request.lm_head else None)
    if request.group_size is None:
        sizes = ", ".join(map(str, paths.DEFAULT_GROUP_SIZES))
        progress.note(f"group size {plan.group_size}: the largest of {sizes} that divides every layer")
    with CheckpointWriter(_directory(source.name, request, plan), request.overwrite, request.resume) as writer:
        work = _open_work(request, source, plan, writer, progress)
        load = time.perf_counter() - start
        with told_if_stopped(writer.journal, len(plan.units), progress):
            units = list(enumerate(plan.units))[work.tally.units :]
            for index, unit in progress.track(units, len(units), "blocks"):
                work.quantize_unit(index, unit)
            search = time.perf_counter() - work.began
            work.write_rest()
            work.scaling.save(work.text)
            forward = work.calibration.forward_seconds if work.calibration else 0.0
            seconds = Seconds(load, search, load + time.perf_counter() - work.began, forward)
            result = _result(request, source, plan, work, seconds, str(writer.directory))
            _finish(writer, source, plan, work, request, result)
    return result


def _open_work(
    request: Request, source: PretrainedModel, plan: Plan, writer: CheckpointWriter, progress: Progress
) -> Work:
    """All that comes before the first block, or before the first that a run to be resumed has not done."""
    journal = writer.journal
    if journal.replaces:
        progress.note("starting over; what an earlier run left for --resume goes when the first block is done")
    quantizer = _quantizer(request.w_bit, plan.group_size)
    scaling = open_scaling(as_it_began(request, journal), source, plan, quantizer, progress)
    journal.identify(marks(request, source, plan, scaling))
    calibration = _calibration(request, source, plan, scaling, journal, progress)
    work = Work(source, plan, request.w_bit, METHODS[request.solver], scaling, calibration, writer)
    if request.resume:
        work.take_up(journal)
        progress.note(f"going on after {work.tally.units} of {len(plan.units)} blocks")
    return work


def _result(
    request: Request, source: PretrainedModel, plan: Plan, work: Work, seconds: Seconds, checkpoint: str
) -> Result:
    scaling = work.scaling
    return Result(
        "quantize",
        source.name,
        request.w_bit,
        plan.group_size,
        request.lm_head,
        scaling.mode,
        request.solver,
        bool(request.flash_attention),
        work.text,
        str(scaling.path) if scaling.path else None,
        scaling.fallback_blocks,
        seconds,
        work.size(),
        peak_rss_bytes(),
        checkpoint,
        work.tally.layers,
        work.tally.blocks,
    )


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
    request: Request, source: PretrainedModel, plan: Plan, scaling: Scaling, journal: Journal, progress: Progress
) -> Calibration | None:
    """The calibration text, if the search or the solver wants to see it. Raises `ModelError` where it cannot be run."""
    method, searches = METHODS[request.solver], scaling.mode == "run"
    reads = method.reads_text(scaling.mode != "none")
    if not reads and not searches:
        return None
    if plan.architecture is None:
        raise ModelError(f"--solver {request.solver} needs to know the blocks of {source.name}; use rtn or hqq")
    sides = method.block is not None or not reads, reads
    calibration = open_calibration(request, source, plan, sides, progress, journal.load_kept().get(TOKENS))
    journal.identify(text_marks(calibration))
    return calibration


def _finish(
    writer: CheckpointWriter, source: PretrainedModel, plan: Plan, work: Work, request: Request, result: Result
) -> None:
    head = (plan.head, plan.head_group_size) if plan.head_group_size else None
    if head is not None:
        source.config.tie_word_embeddings = False
    kept = [
        name
        for name, module in source.model.named_modules()
        if isinstance(module, nn.Linear) and name not in work.tally.quantized_names
    ]
    section = quantization_section(request.w_bit, plan.group_size, head, kept)
    options = asdict(request)
    del options["resume"]  # it makes no difference
    recipe = {**asdict(result), "fingerprint": source.fingerprint, "options": options, "versions": versions()}
    writer.finish(source.config, source.generation_config, source.tokenizer, section, recipe)
