"""Make a 3- or 4-bit checkpoint of a float model, one decoder block at a time."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from checkpoints.card import card_text, facts_of, losses_of, read_origin
from checkpoints.journal import Journal
from checkpoints.local import files_fingerprint
from checkpoints.pretrained import PretrainedModel, fingerprint_at_hand, open_pretrained
from checkpoints.proofs import proof
from checkpoints.quantized import check_quantized, read_tokenizer
from checkpoints.writer import CheckpointWriter, Description
from engine.alike import describes
from qlinear.errors import ModelError, OptionError
from qlinear.process import peak_rss_bytes
from qlinear.progress import Note, Watcher, silent, steps
from quantization import paths
from quantization.description import describe
from quantization.distill import check_fits, open_lesson
from quantization.distributed import open_ranks
from quantization.kept import Kept, KindRecord, kinds_found
from quantization.plan import Job, examine_job, make_job
from quantization.precision import undisturbed
from quantization.recipe import Awq, Recipe
from quantization.resume import (
    as_it_began,
    kept_grids,
    marks,
    refuse_another_run,
    text_marks,
    told_if_stopped,
    versions,
)
from quantization.scaling import Scaling, open_scaling
from quantization.section import section_of
from quantization.sensitivity import with_grids
from quantization.shards import served_of
from quantization.streams import TOKENS, Sides, Streams, open_streams
from quantization.tally import GridRecord, LinearLosses, Size, least_bytes
from quantization.unit import BlockErrors, Distilled
from quantization.work import Work
from scales.ranks import Ranks


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
    """blocks: by name; empty where every linear was solved by itself; kinds: of decoder blocks, and their edges;

    chat_template: whether the model has one; kept: what of the decoder stays float, and kept_share: how much of its
    weights that is; shards: over how many vLLM can serve it; w_bit, group_size: None where layers differ in it, and
    bits_per_weight was asked for; grids: how many linears are on which.
    """

    task: str
    model: str
    w_bit: int | None
    group_size: int | None
    symmetric: bool
    lm_head: bool
    awq: str
    solver: str
    flash_attention: bool | None
    calibration: dict | None
    scales: str | None
    fallback_blocks: list[str]
    seconds: Seconds
    size: Size
    peak_rss_bytes: int
    checkpoint: str
    chat_template: bool
    layers: list[LinearLosses]
    blocks: dict[str, BlockErrors]
    distilled: Distilled | None
    kinds: list[KindRecord]
    kept: list[Kept]
    kept_share: float
    shards: list[int]
    bits_per_weight: float | None
    grids: list[GridRecord]


@dataclass(frozen=True)
class Place:
    """Where a checkpoint goes. output: None for `quantized_models/` and a name that the recipe makes;

    overwrite: replace a checkpoint that is there; resume: go on where a run to this place was stopped.
    """

    output: str | None = None
    overwrite: bool = False
    resume: bool = False


def quantize(
    model_name: str,
    recipe: Recipe = Recipe(),
    place: Place = Place(),
    trust_remote_code: bool = False,
    watch: Watcher = silent,
    check: Callable[[PretrainedModel, Path], None] | None = None,
) -> Result:
    """Quantize a model by a recipe and save the checkpoint. Raises `AwqError`s of one line each.

    check: raises what of the model and the directory is in the way of what is to come of the checkpoint, before the
    first block.
    Where the environment says that this is one of several ranks, all of them do it together: the leading one writes and
    is the only one that is watched; the result is everyone's.
    """
    with undisturbed(), open_ranks() as ranks:
        start = time.perf_counter()
        recipe = recipe.settled()
        _refuse_ranks(recipe, ranks)
        source = open_pretrained(model_name, trust_remote_code)
        if len(set(ranks.swap(source.fingerprint))) > 1:
            raise ModelError(f"the ranks have different files for {model_name}; give all of them the same")
        job = replace(make_job(source, recipe, watch if ranks.leads else silent), ranks=ranks)
        if not ranks.leads:
            _take_part(job, place.resume)
            return ranks.told(None)
        return ranks.told(_lead(job, model_name, place, trust_remote_code, start, check))


def _refuse_ranks(recipe: Recipe, ranks: Ranks) -> None:
    if ranks.size > 1 and recipe.method.block:
        raise OptionError(
            f"`solver={recipe.solver}` moves a block's weights a step at a time, which {ranks.size} ranks cannot share;"
            " use `solver=gptq`, or start one process"
        )


def _take_part(job: Job, resume: bool) -> None:
    """What a rank does that does not lead: its share of every block."""
    job.ranks.told(None)  # whether the place to write to is one
    work = _open_work(with_grids(examine_job(job)), None, resume)
    for index in range(work.tally.units, len(job.plan.units)):
        work.quantize_unit(index)
    work.write_rest()


def _lead(
    job: Job, model_name: str, place: Place, trust_remote_code: bool, start: float, check: Callable | None
) -> Result:
    """start: when it began, by `time.perf_counter`."""
    source, watch = job.source, job.watch
    with CheckpointWriter(_directory(job, place, model_name), place.overwrite, place.resume, source.files) as writer:
        description = describe(job, trust_remote_code)
        writer.rehearse(description, least_bytes(job))
        if check is not None:
            check(source, writer.directory)
        if place.output is None:  # two models may have one name
            refuse_another_run(writer.journal, job, writer.directory)
        job.ranks.told(True)
        job = examine_job(job)
        check_fits(job)
        job = with_grids(job, kept_grids(writer.journal, job) if place.resume else None)
        recipe, plan = job.recipe, job.plan
        work = _open_work(job, writer, place.resume)
        load = time.perf_counter() - start
        with told_if_stopped(writer.journal, job):
            todo = range(work.tally.units, len(plan.units))
            for index in steps(todo, len(todo), "blocks", watch):
                work.quantize_unit(index)
            search = time.perf_counter() - work.began
            work.write_rest()
            work.distill()
            work.scaling.save(work.text)
            forward = work.streams.forward_seconds if work.streams else 0.0
            seconds = Seconds(load, search, load + time.perf_counter() - work.began, forward)
            result = _result(job, work, seconds, str(writer.directory))
            _finish(job, work, result, description, {"model_name": model_name, **recipe.to_json()})
    return result


def _directory(job: Job, place: Place, model_name: str) -> Path:
    if place.output is not None:
        return Path(place.output)
    directory = paths.MODELS / paths.checkpoint_name(job.source.name, job.recipe.settled(job.plan.group_size))
    paths.refuse_another_model(directory, model_name, job.source.fingerprint)
    return directory


def _open_work(job: Job, writer: CheckpointWriter | None, resume: bool) -> Work:
    """All that comes before the first block, or before the first that a run to be resumed has not done."""
    if writer is None:
        scaling = open_scaling(job)
        work = Work(job, scaling, _streams(job, scaling, None), None)
        if resume:
            work.take_up()
        return work
    journal = writer.journal
    if journal.replaces:
        job.watch(Note("starting over; what an earlier run left for `resume` goes when the first block is done"))
    scaling = open_scaling(replace(job, recipe=as_it_began(job.recipe, journal)))
    journal.identify(marks(job, scaling))
    streams = _streams(job, scaling, journal)
    lesson = open_lesson(job, streams) if job.recipe.distill else None
    journal.identify({"distillation tokens of sha256": lesson and lesson.sha256})
    work = Work(job, scaling, streams, writer, lesson)
    if resume:
        work.take_up()
        job.watch(Note(f"going on after {work.tally.units} of {len(job.plan.units)} blocks"))
    return work


def _streams(job: Job, scaling: Scaling, journal: Journal | None) -> Streams | None:
    """The calibration text, if the search or the solver wants to see it."""
    method = job.recipe.method
    reads = method.reads_text(scaling.awq is not Awq.NONE)
    if not reads and not scaling.looks:
        return None
    sides = Sides(floats=method.block is not None or not reads, rounded=reads)
    streams = open_streams(job, sides, journal.load_kept().get(TOKENS) if journal else None)
    if journal:
        journal.identify(text_marks(streams))
    return streams


def _result(job: Job, work: Work, seconds: Seconds, checkpoint: str) -> Result:
    recipe, scaling = job.recipe, work.scaling
    return Result(
        "quantize",
        job.source.name,
        None if recipe.mixed else recipe.w_bit,
        recipe.group_size if recipe.mixed else job.plan.group_size,
        recipe.symmetric,
        recipe.lm_head,
        scaling.awq.value,
        recipe.solver,
        recipe.flash_attention,
        work.text,
        str(scaling.path) if scaling.path else None,
        scaling.fallback_blocks,
        seconds,
        work.tally.size(job.source.float_bytes),
        peak_rss_bytes(),
        checkpoint,
        bool(job.source.tokenizer.chat_template),
        work.tally.layers,
        work.tally.blocks,
        work.tally.distilled,
        kinds_found(job.plan.units, job.plan.anatomies) if job.plan.blocks else [],
        list(job.kept),
        job.kept_share,
        served_of(job),
        recipe.bits_per_weight,
        work.tally.grids(),
    )


def _finish(job: Job, work: Work, result: Result, description: Description, options: dict) -> None:
    """options: what was asked for, for the record."""
    source, recipe = job.source, job.recipe
    if fingerprint_at_hand(options["model_name"], description.trust_remote_code) not in (source.fingerprint, None):
        raise ModelError(
            "the model's files are others than when it was opened, and what was made is of both; start over"
        )
    if recipe.lm_head:
        source.config.tie_word_embeddings = False
    section = section_of(job, work.tally.quantized_names)
    made = {
        **asdict(result),
        "fingerprint": source.fingerprint,
        "files_fingerprint": files_fingerprint(options["model_name"]),
        "options": options,
        "versions": versions(),
    }
    trusted = description.trust_remote_code
    origin = read_origin(options["model_name"], source.directory)
    label = work.writer.directory.resolve().name
    card = card_text(origin, "compressed-tensors", label, facts_of(made), losses_of(made))
    described = replace(description, card=card)

    def check(folder: Path) -> str | None:
        return proof(folder, read_tokenizer(folder, trusted), check_quantized(folder, trusted), describes)

    work.writer.finish(described, section, made, check)
