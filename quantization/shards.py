"""Whether vLLM can serve a checkpoint over several shards (tensor parallelism), layer by layer.

It cuts the linears that read the residual stream along their outputs, and those that write to it along their inputs.
What a shard has to be is read from vLLM 0.32: a group that two shards would share cannot be served at all
(`kernels/linear/mixed_precision/marlin.py`, `can_implement`), nor can heads that the shards do not divide; codes and
zero points are eight to a word. Its Marlin kernels take K in 128s and N in 64s (`quantization/utils/marlin_utils.py`),
and pad the rest with zeros on every call; older ones refuse it. It has no kernel for 3 bits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from architectures.anatomy import template
from architectures.fields import of_all_layers
from qlinear.grid import Grid
from quantization.plan import Job
from quantization.unit import full_name

MARLIN_K, MARLIN_N = 128, 64
WORD = 8  # codes of 4 bits
MOST_SHARDS = 16
# What the linears that write to the residual stream are called, in the families of transformers.
_WRITING = ("o_proj", "down_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "w2", "c_proj", "wo")
_HEADS, _KV_HEADS = "num_attention_heads", "num_key_value_heads"


@dataclass(frozen=True)
class Misfit:
    """served: whether it is served all the same, with zeros filled in."""

    layer: str
    reason: str
    served: bool


def misfits(shapes: Mapping[str, tuple[int, int]], grid: Grid, config, shards: int) -> list[Misfit]:
    """What stands against that many shards. shapes: `(N, K)` of each quantized linear by name; config: the decoder's.

    The queries' heads are asked about first; keys and values are copied where there are more shards than heads of them.
    """
    if grid.bits != 4:
        return [Misfit("every layer", f"vLLM reads 4 bits here, not {grid.bits}", False)]
    heads = of_all_layers(config, _HEADS)
    if isinstance(heads, int) and heads % shards:
        return [Misfit("attention", f"{heads} heads are not a multiple of {shards}", False)]
    kv_heads = of_all_layers(config, _KV_HEADS)
    copies = shards if not isinstance(kv_heads, int) or kv_heads >= shards else kv_heads
    return [
        Misfit(name, reason, served)
        for name, shape in shapes.items()
        for reason, served in _faults(shape, grid, name.rpartition(".")[2], (shards, copies))
    ]


def _faults(shape: tuple[int, int], grid: Grid, leaf: str, cuts: tuple[int, int]) -> Iterator[tuple[str, bool]]:
    """cuts: into how many parts a linear goes, and one of keys or values."""
    (n, k), shards = shape, cuts[1] if leaf in ("k_proj", "v_proj") else cuts[0]
    writes = leaf in _WRITING
    whole, letter = (k, "K") if writes else (n, "N")
    if whole % shards:
        yield f"{letter} = {whole} is not a multiple of {shards}", False
        return
    n, k = (n, k // shards) if writes else (n // shards, k)
    per_shard = " a shard" if shards > 1 else ""
    if k % grid.group_size:
        yield f"K = {k}{per_shard} is not a multiple of the group size {grid.group_size}", False
    elif n % WORD:
        yield f"N = {n}{per_shard} is not a multiple of {WORD}", False
    elif k % MARLIN_K:
        yield f"K = {k}{per_shard} is not a multiple of {MARLIN_K}", True
    elif n % MARLIN_N:
        yield f"N = {n}{per_shard} is not a multiple of {MARLIN_N}", True


def shards_served(shapes: Mapping[str, tuple[int, int]], grid: Grid, config) -> list[int]:
    """Over how many shards the checkpoint can be served, of the powers of two; empty where not even over one."""
    counts = (2**power for power in range(MOST_SHARDS.bit_length()))
    return [count for count in counts if all(fault.served for fault in misfits(shapes, grid, config, count))]


def quantized_shapes(job: Job) -> dict[str, tuple[int, int]]:
    """By name, numbers left out: what vLLM cuts is the same in every block."""
    shapes = {}
    for unit, anatomy in zip(job.plan.units, job.plan.anatomies, strict=True):
        block = job.source.model.get_submodule(unit)
        shapes |= {template(full_name(unit, n)): tuple(block.get_submodule(n).weight.shape) for n in anatomy.linears}
    return shapes


def misfits_of(job: Job, shards: int) -> list[Misfit]:
    """What stands against that many shards of what a job makes."""
    found = misfits(quantized_shapes(job), job.coarsest, job.source.config.get_text_config(), shards)
    return [Misfit("the embedding", "vLLM reads none of 8 bits", False)] * (job.in_bytes is not None) + found


def served_of(job: Job) -> list[int]:
    """`shards_served` of what a job makes."""
    if job.in_bytes is not None:
        return []
    return shards_served(quantized_shapes(job), job.coarsest, job.source.config.get_text_config())
