"""What quantizing a model would make and take, told without doing it: nothing is written."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from architectures.anatomy import template
from architectures.blocks import beside_blocks
from checkpoints.formats.in_bytes import BITS as BITS_IN_BYTES
from checkpoints.meta import stored_tensors
from checkpoints.pretrained import open_described
from checkpoints.writer import SHARD_BYTES
from qlinear.process import available_bytes, peak_rss_bytes
from qlinear.progress import Watcher
from qlinear.solvers.gptq import CHUNK_WEIGHTS
from quantization.amounts import Seconds, Source, Text, block_seconds, sources, text_of
from quantization.distill import bytes_needed
from quantization.examine import kinds
from quantization.gauge import CROP, Rates, measure
from quantization.kept import kept_float
from quantization.plan import Job, examine_job, make_job
from quantization.recipe import Awq, Recipe
from quantization.sensitivity import SAMPLES
from quantization.shards import Misfit, misfits_of, served_of
from quantization.shared import RANKS, Shared, shared
from quantization.unit import full_name

FLOAT_BITS, FLOAT_BYTES = 16, 2
# How far a forecast of time may be off where nothing had to be scaled up: measured on whole runs (docs/scale.md).
LEAST_ERROR = 0.3
# A weight on its way through a solver or a search: copies of it in float32, of no more of its rows than CHUNK_WEIGHTS.
COPIES = 6


@dataclass(frozen=True)
class LayerKind:
    """Layers of one name but for their numbers. shape: `(N, K)`, or of whatever dimensions a float one is; bits: of a
    weight as stored, with its share of scales and zero points; bytes: of all of them; reason: why it stays float, if it
    does.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    bits: float
    bytes: int
    reason: str | None = None


@dataclass(frozen=True)
class Forecast:
    """seconds: on as many threads as this process has, with nothing else to do; error: as a share of it; parts: of it;

    memory_bytes: at most; memory_free, disk_free: what this machine has, None where it does not say; disk_bytes: what
    is written, the progress that is kept for a run that is stopped too; ranks: the same shared among several processes;
    examined: whether a block of each kind was looked at, or shapes alone; shards: over how many vLLM
    serves it; asked_shards and misfits: of the number that was asked about.
    """

    task: str
    model: str
    w_bit: int | None
    group_size: int | None
    awq: str
    solver: str
    weights: int
    blocks: int
    float_bytes: int
    bytes: int
    layers: list[LayerKind]
    examined: bool
    seconds: float
    error: float
    parts: dict[str, float]
    memory_bytes: int
    memory_free: int | None
    disk_bytes: int
    disk_free: int
    ranks: list[Shared]
    shards: list[int]
    asked_shards: int | None
    misfits: list[Misfit]


def forecast(
    model_name: str, recipe: Recipe, output: str | None, shards: int | None, trusted: bool, watch: Watcher
) -> Forecast:
    """What `quantize` would do with the same. A directory that holds a config.json alone will do.

    output: where the checkpoint would go; shards: how many vLLM is to serve it over. Raises `AwqError`s as `quantize`
    does for what can be known without the text.
    """
    source = open_described(model_name, trusted)
    job = make_job(source, recipe.settled(), watch)
    libraries, examined = peak_rss_bytes(), bool(source.files)
    if examined:
        job = examine_job(job)
    else:
        kept = kept_float(source.model, job.plan.units, job.plan.anatomies, job.plan.head)
        job = replace(job, kept=tuple(kept))
    layers, inputs, text = _layers(job), _inputs(job), text_of(job)
    near, far = (_time(job, inputs, text, crop) for crop in (CROP, CROP // 2))
    total, other = (sum(seconds.total for seconds in times) for times in (near, far))
    made = sum(layer.bytes for layer in layers)

    def memory(samples: int) -> int:
        whole = bytes_needed(job) if recipe.distill else 0
        measured = _memory_measured(job, inputs) if recipe.mixed else 0
        return libraries + max(_memory(job, inputs, replace(text, samples=samples)), whole, measured)

    return Forecast(
        "dry_run", source.name, None if recipe.mixed else recipe.w_bit,
        recipe.group_size if recipe.mixed else job.plan.group_size, job.recipe.awq.value, job.recipe.solver,
        source.float_bytes // FLOAT_BYTES, len(job.plan.units), source.float_bytes, made, layers, examined,
        total, max(LEAST_ERROR, abs(other - total) / total), _parts(near), memory(text.samples),
        available_bytes(), made + _progress(job, text) + min(made, SHARD_BYTES), _free(output),
        [shared(ranks, near, inputs, text, memory) for ranks in RANKS if text.gathered],
        served_of(job), shards, misfits_of(job, shards) if shards else [],
    )  # fmt: skip


def _layers(job: Job) -> list[LayerKind]:
    """Of the whole model, in the order of its tensors: what is quantized, what is not, and why."""
    model, plan, grids = job.source.model, job.plan, {}
    for unit, anatomy in zip(plan.units, plan.anatomies, strict=True):
        grids |= {full_name(unit, local): job.grid for local in anatomy.linears}
    if job.recipe.lm_head:
        grids[plan.head] = job.head_grid
    reasons = {entry.name: entry.reason for entry in job.kept}
    found: dict[tuple[str, tuple[int, ...]], LayerKind] = {}
    seen: set[int] = set()
    for name, tensor in stored_tensors(model):
        owner, _, leaf = name.rpartition(".")
        quantized = leaf == "weight" and owner in grids
        if id(tensor) in seen and not quantized:
            continue
        seen.add(id(tensor))
        in_bytes = name == job.in_bytes
        bits = (job.recipe.bits_per_weight or grids[owner].bits_per_weight) if quantized else FLOAT_BITS
        if in_bytes:
            bits = BITS_IN_BYTES + 16 / job.byte_group_size
        kind = template(owner) if tensor.ndim > 1 else "norms and biases"
        reason = None if quantized or in_bytes else reasons.get(kind) or _why_float(job, owner, tensor.ndim)
        key = (kind, tuple(tensor.shape) if tensor.ndim > 1 else (1,))
        old = found.get(key) or LayerKind(kind, 0, key[1] if tensor.ndim > 1 else (), bits, 0, reason)
        found[key] = replace(old, count=old.count + 1, bytes=old.bytes + int(tensor.numel() * bits / 8))
    return list(found.values())


def _why_float(job: Job, owner: str, dimensions: int) -> str:
    if dimensions < 2:
        return "no matrix"
    if owner == job.plan.head:
        return "the output head; `lm_head` quantizes it"
    of_tokens = job.source.model.get_submodule(owner) is job.source.model.get_input_embeddings()
    return "an embedding; `embedding_bits` stores it in 8" if of_tokens else "an embedding"


def _inputs(job: Job) -> list[list[Source]]:
    """Of each block, those of one kind looked at once."""
    model, plan, config = job.source.model, job.plan, job.source.config.get_text_config()
    same = kinds(model, plan.units)
    known = {
        index: sources(model.get_submodule(plan.units[index]), plan.anatomies[index], config)
        for index in set(same.values())
    }
    return [known[same[index]] for index in range(len(plan.units))]


def _time(job: Job, inputs: list[list[Source]], text: Text, crop: int) -> list[Seconds]:
    rates: dict[int, Rates] = {}
    times: dict[int, Seconds] = {}
    for sources_ in inputs:
        if id(sources_) in times:
            continue
        widths = {min(source.width, crop) for source in sources_}
        wide = max(widths)  # most of the work is there
        if wide not in rates:
            rates[wide] = measure(wide, job.grid, job.recipe.method, crop)
        times[id(sources_)] = block_seconds(sources_, text, job, rates[wide])
    return [times[id(sources_)] for sources_ in inputs]


def _parts(times: Iterable[Seconds]) -> dict[str, float]:
    times = list(times)
    parts = {
        "measuring": sum(each.measure for each in times),
        "forward passes": sum(each.forward for each in times),
        "statistics": sum(each.statistics for each in times),
        "search": sum(each.search for each in times),
        "codes": sum(sum(each.solve) for each in times),
        "distillation": sum(each.distill for each in times),
    }
    return {name: seconds for name, seconds in parts.items() if seconds or name not in ("measuring", "distillation")}


def _memory_measured(job: Job, inputs: list[list[Source]]) -> int:
    """As grids are chosen: what every block is given, and of one the weights and errors, what goes in and comes out."""
    tokens, width = SAMPLES * job.recipe.seqlen, getattr(job.source.config.get_text_config(), "hidden_size", 0)
    ways = max(sum(n + k for source in sources_ for n, k in source.shapes) for sources_ in inputs)
    weights = max(sum(source.weights for source in sources_) for sources_ in inputs)
    return tokens * FLOAT_BYTES * (len(inputs) * width + ways) + 2 * 4 * weights


def _memory(job: Job, inputs: list[list[Source]], text: Text) -> int:
    """Beside the libraries, in the larger of two moments: as the text enters the model, and in the largest block.

    A block is there twice in float32, as it is and rounded, with the Gram matrices of its inputs and, where a solver
    wants one, three more of the largest; what one sample makes of it, the text before it, and what has come out of it.
    """
    model, width = job.source.model, getattr(job.source.config.get_text_config(), "hidden_size", 0)
    blocks = [sum(tensor.numel() for _, tensor in stored_tensors(model.get_submodule(unit))) for unit in job.plan.units]
    state = text.tokens * width * FLOAT_BYTES
    solver = job.recipe.method
    grams = max(4 * sum(source.width**2 for source in sources_) for sources_ in inputs) if text.gathered else 0
    factors = 3 * 4 * max((source.width**2 for sources_ in inputs for source in sources_), default=0)
    learned = 5 * 4 * max(blocks) if solver.block else 0
    copies = COPIES * 4 * min(CHUNK_WEIGHTS, max(source.weights for sources_ in inputs for source in sources_))
    seen = 2 * 4 * text.seqlen * max(sum(n + k for source in sources_ for n, k in source.shapes) for sources_ in inputs)
    working = 2 * 4 * max(blocks) + copies + seen + grams + factors * bool(text.gathered) + learned
    if not text.gathered:
        return (4 if job.recipe.awq is Awq.LOAD else FLOAT_BYTES) * max(blocks) + copies
    beside = sum(4 * _own(model.get_submodule(name)) for name in beside_blocks(model, job.plan.units))
    entering = 4 * max(blocks) + beside + 3 * state
    return max(entering, working + (2 + bool(solver.block)) * state)


def _own(module: nn.Module) -> int:
    return sum(tensor.numel() for _, tensor in stored_tensors(module, recurse=False))


def _progress(job: Job, text: Text) -> int:
    """What is kept on disk of the text on its way, twice for a moment."""
    width = getattr(job.source.config.get_text_config(), "hidden_size", 0)
    return 2 * text.tokens * width * FLOAT_BYTES if text.gathered else 0


def _free(output: str | None) -> int:
    """Of the disk that the checkpoint would go to."""
    place = Path(output or ".").absolute()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
