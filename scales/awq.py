"""AWQ on one decoder block: search scales, fold them in, search clips; keep plain rounding if that is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from architectures.anatomy import Anatomy
from architectures.family import Edge
from scales import fold
from scales.clip import blocks_behind, search_clip
from scales.observe import Observation
from scales.ranks import ALONE, Ranks
from scales.search import (
    Quantizer,
    Rounding,
    ScaleChoice,
    candidates,
    confirm,
    module_error,
    quantize_by_rows,
    rank,
    relative_loss,
    sample_rows,
    substituted,
)
from scales.statistics import InputStatistics

# Tokens on which candidates are confirmed. Which of them wins hardly depends on more: on 20 blocks of SmolLM2-135M
# those that 512 and 2048 tokens chose differ by 0.3 % in their mean error on 8192 others.
CONFIRM_TOKENS = 512


# Linears that candidates are ranked on, of a layer of experts that all read one norm.
MOST_RANKED = 32


@dataclass(frozen=True)
class LayerLoss:
    """Relative squared output error of one linear: rounded as it was, and after AWQ; ratio: the exponent chosen."""

    loss_rtn: float
    loss_awq: float
    ratio: float | None


@dataclass(frozen=True)
class BlockResult:
    """What AWQ did to one block. Names are local to it.

    scales: (edge, vector) in the order they were folded; clips: `(N, K / group_size, 1)` by linear.
    error_rtn, error_awq: mean squared error of the block's output on the samples.
    fell_back: AWQ was worse than plain rounding, so the block is as it was, and scales and clips are empty.
    """

    scales: list[tuple[Edge, Tensor]]
    clips: dict[str, Tensor]
    losses: dict[str, LayerLoss]
    error_rtn: float
    error_awq: float
    fell_back: bool


def watched_modules(anatomy: Anatomy) -> tuple[str, ...]:
    """The modules of a block whose calls the search wants to see: those it runs to confirm, and the block itself."""
    return tuple(dict.fromkeys([edge.inspect for edge in anatomy.edges if not _is_linear(edge)] + [""]))


def _is_linear(edge: Edge) -> bool:
    """Whether the inspected output is that of a scaled linear, so that a Gram matrix tells all."""
    return edge.inspect in edge.layers


def quantize_block(
    block: nn.Module,
    anatomy: Anatomy,
    config,
    seen: Observation,
    roundings: Mapping[str, Rounding],
    *,
    ranks: Ranks = ALONE,
) -> BlockResult:
    """Scale `block`, which holds float32 weights, so that rounding it does the least harm; all ranks together.

    roundings: of each linear by its local name, one for all that an edge scales. The clips belong to it, and are judged
    with it, but it is for the caller to apply them: only plain rounding needs them, other solvers find ranges of their
    own.
    """
    linears = {name: block.get_submodule(name) for name in anatomy.linears}
    quantizers = {name: roundings[name].quantize for name in linears}
    rounded = [quantize_by_rows(linear.weight.data, quantizers[name]) for name, linear in linears.items()]
    with substituted(list(linears.values()), rounded):
        error_rtn = _mean_error(block, seen, ranks)
    del rounded
    loss_rtn = _rounding_losses(linears, seen.statistics, quantizers, ranks)
    choices = [(edge, _search_edge(block, edge, config, seen, quantizers, ranks=ranks)) for edge in anatomy.edges]

    # From here on there are two copies of the weights: this one and the block's, which is scaled, then rounded.
    original = {name: parameter.data.clone() for name, parameter in block.named_parameters()}
    for edge, choice in choices:
        fold.apply_scale(block, edge, choice.vector, config)
    scales = {
        name: fold.consumer_scale(edge, choice.vector, config) for edge, choice in choices for name in edge.layers
    }
    clips, loss_awq = _clip_all(linears, anatomy, seen.statistics, scales, roundings, ranks)
    for name, linear in linears.items():
        quantize_by_rows(linear.weight.data, quantizers[name], out=linear.weight.data)
    error_awq = _mean_error(block, seen, ranks)
    for name, parameter in block.named_parameters():
        parameter.data.copy_(original[name])

    if not error_awq <= error_rtn:  # written so that a NaN falls back too
        losses = {name: LayerLoss(loss, loss, None) for name, loss in loss_rtn.items()}
        return BlockResult([], {}, losses, error_rtn, error_awq, fell_back=True)
    for edge, choice in choices:
        fold.apply_scale(block, edge, choice.vector, config)
    ratios = {name: choice.ratio for edge, choice in choices for name in edge.layers}
    losses = {name: LayerLoss(loss_rtn[name], loss_awq[name], ratios.get(name)) for name in linears}
    vectors = [(edge, choice.vector) for edge, choice in choices]
    return BlockResult(vectors, clips, losses, error_rtn, error_awq, fell_back=False)


def _search_edge(
    block: nn.Module, edge: Edge, config, seen: Observation, quantizers: Mapping[str, Quantizer], *, ranks: Ranks
) -> ScaleChoice:
    names = [name for name in edge.layers if name in seen.statistics]  # a router's weight is scaled but not rounded
    quantize = quantizers[names[0]]
    linears = [block.get_submodule(name) for name in names]
    statistics = [seen.statistics[name] for name in names]

    def expand(vector: Tensor) -> Tensor:
        return fold.consumer_scale(edge, vector, config)

    choices = candidates(fold.reduce_statistic(edge, mean_abs(statistics), config))
    asked = _most_fed(statistics)
    weighed = [(linears[index].weight.data, statistics[index].gram) for index in asked]
    ranked = rank(choices, weighed, expand, quantize, ranks=ranks)
    if _is_linear(edge):
        return ranked[0]
    module = block.get_submodule(edge.inspect)
    samples = seen.samples[edge.inspect]
    enough = -(-CONFIRM_TOKENS // samples[0][0].shape[:-1].numel())
    return confirm(ranked, module, linears, samples[:enough], expand, quantize, ranks=ranks)


def mean_abs(statistics: Sequence[InputStatistics]) -> Tensor:
    """Mean |x| `(K,)` over all tokens that the inputs were seen on, those of experts each as often as they were."""
    distinct = list({id(each): each for each in statistics}.values())
    return sum(each.sum_abs for each in distinct) / max(sum(each.tokens for each in distinct), 1)


def _most_fed(statistics: Sequence[InputStatistics]) -> list[int]:
    """Which of many linears the candidates are ranked on: those of the experts that most tokens reach."""
    order = sorted(range(len(statistics)), key=lambda index: -statistics[index].tokens)
    return sorted(order[:MOST_RANKED])


def _clip_all(
    linears: dict[str, nn.Linear],
    anatomy: Anatomy,
    statistics: dict[str, InputStatistics],
    scales: dict[str, Tensor],
    roundings: Mapping[str, Rounding],
    ranks: Ranks,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Clip every linear whose loss does not pass through q.k; returns the clips and all relative losses.

    statistics: of the inputs before `scales` were folded into the linears.
    """
    names = list(linears)

    def clipped(index: int) -> tuple[Tensor | None, float]:
        name = names[index]
        rounding = roundings[name]
        linear, gram = linears[name], statistics[name].gram
        scale = scales[name] if name in scales else gram.new_ones(len(gram))
        folded, clip = sample_rows(linear.weight.data).clone(), None
        if name not in anatomy.unclipped:
            blocks = blocks_behind(gram, rounding.group_size, scale)
            clip = search_clip(linear.weight.data, blocks, rounding.quantize)
            fold.apply_clip(linear, clip)
        rounded = rounding.quantize(sample_rows(linear.weight.data))
        return clip, relative_loss(rounded / scale, folded / scale, gram)

    found = dict(zip(names, ranks.share(_costs(linears), clipped), strict=True))
    clips = {name: clip for name, (clip, _) in found.items() if clip is not None}
    for name, clip in clips.items():
        fold.apply_clip(linears[name], clip)  # again, where it was found here: it changes nothing more
    return clips, {name: loss for name, (_, loss) in found.items()}


def _costs(linears: dict[str, nn.Linear]) -> list[float]:
    """Of looking at each by the Gram matrix of its inputs, in proportion."""
    return [float(linear.weight.numel() * linear.in_features) for linear in linears.values()]


def _rounding_losses(
    linears: dict[str, nn.Linear],
    statistics: dict[str, InputStatistics],
    quantizers: dict[str, Quantizer],
    ranks: Ranks,
) -> dict[str, float]:
    names = list(linears)

    def loss(index: int) -> float:
        rows = sample_rows(linears[names[index]].weight.data)
        return relative_loss(quantizers[names[index]](rows), rows, statistics[names[index]].gram)

    return dict(zip(names, ranks.share(_costs(linears), loss), strict=True))


def _mean_error(block: nn.Module, seen: Observation, ranks: Ranks) -> float:
    """Mean squared error of the block's output on the samples, with its weights as they stand."""
    samples = seen.samples[""]
    return module_error(block, samples, ranks) / sum(output.numel() for _, _, output in samples)
