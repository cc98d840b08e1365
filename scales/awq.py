"""AWQ on one decoder block: search scales, fold them in, search clips, fold them in; keep plain rounding if better."""

from dataclasses import dataclass

from torch import Tensor, nn

from scales import fold
from scales.clip import search_clip
from scales.mappings import Architecture, Edge
from scales.observe import InputStatistics, Observation
from scales.search import Quantizer, ScaleChoice, confirm, module_error, output_loss, rank, substituted


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


def watched_modules(architecture: Architecture) -> tuple[str, ...]:
    """The modules of a block whose calls the search wants to see: those it inspects, and the block itself."""
    return tuple(dict.fromkeys([edge.inspect for edge in architecture.edges] + [""]))


def quantize_block(
    block: nn.Module,
    linears: dict[str, nn.Linear],
    architecture: Architecture,
    config,
    seen: Observation,
    quantize: Quantizer,
    group_size: int,
) -> BlockResult:
    """Change `block`, which holds float32 weights, so that rounding it with `quantize` does the least harm."""
    original = {name: parameter.data.clone() for name, parameter in block.named_parameters()}
    error_rtn = _rounded_error(block, linears, seen, quantize)
    loss_rtn = {
        name: _relative_loss(quantize(linear.weight.data), linear.weight.data, seen.statistics[name])
        for name, linear in linears.items()
    }

    choices = [(edge, _search_edge(block, edge, config, seen, quantize)) for edge in architecture.edges]
    for edge, choice in choices:
        fold.apply_scale(block, edge, choice.vector, config)
    statistics = _rescaled(seen.statistics, choices, config)
    clips, loss_awq = _clip_all(linears, architecture, statistics, quantize, group_size)

    error_awq = _rounded_error(block, linears, seen, quantize)
    if not error_awq <= error_rtn:  # written so that a NaN falls back too
        for name, parameter in block.named_parameters():
            parameter.data.copy_(original[name])
        losses = {name: LayerLoss(loss, loss, None) for name, loss in loss_rtn.items()}
        return BlockResult([], {}, losses, error_rtn, error_awq, fell_back=True)

    ratios = {name: choice.ratio for edge, choice in choices for name in edge.layers}
    losses = {name: LayerLoss(loss_rtn[name], loss_awq[name], ratios.get(name)) for name in linears}
    scales = [(edge, choice.vector) for edge, choice in choices]
    return BlockResult(scales, clips, losses, error_rtn, error_awq, fell_back=False)


def _search_edge(block: nn.Module, edge: Edge, config, seen: Observation, quantize: Quantizer) -> ScaleChoice:
    linears = [block.get_submodule(name) for name in edge.layers]
    statistics = seen.statistics[edge.layers[0]]

    def expand(vector: Tensor) -> Tensor:
        return fold.consumer_scale(edge, vector, config)

    vector = fold.reduce_statistic(edge, statistics.mean_abs, config)
    ranked = rank([linear.weight.data for linear in linears], statistics, vector, expand, quantize)
    if edge.inspect in edge.layers:
        return ranked[0]
    module = block.get_submodule(edge.inspect)
    return confirm(ranked, module, linears, seen.samples[edge.inspect], expand, quantize)


def _rescaled(
    statistics: dict[str, InputStatistics], choices: list[tuple[Edge, ScaleChoice]], config
) -> dict[str, InputStatistics]:
    rescaled = dict(statistics)
    for edge, choice in choices:
        scale = fold.consumer_scale(edge, choice.vector, config)
        shared = statistics[edge.layers[0]].rescaled(scale)
        rescaled.update(dict.fromkeys(edge.layers, shared))
    return rescaled


def _clip_all(
    linears: dict[str, nn.Linear],
    architecture: Architecture,
    statistics: dict[str, InputStatistics],
    quantize: Quantizer,
    group_size: int,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Clip every linear whose loss does not pass through q.k; returns the clips and all relative losses."""
    clips, losses = {}, {}
    for name, linear in linears.items():
        folded = linear.weight.data.clone()
        if name not in architecture.unclipped:
            clips[name] = search_clip(folded, statistics[name].gram, group_size, quantize)
            fold.apply_clip(linear, clips[name])
        losses[name] = _relative_loss(quantize(linear.weight.data), folded, statistics[name])
    return clips, losses


def _relative_loss(rounded: Tensor, weight: Tensor, statistics: InputStatistics) -> float:
    whole = output_loss(weight, statistics.gram)
    return output_loss(rounded - weight, statistics.gram) / whole if whole > 0 else 0.0


def _rounded_error(block: nn.Module, linears: dict[str, nn.Linear], seen: Observation, quantize: Quantizer) -> float:
    """Mean squared error of the block's output on the samples when every linear is rounded as it stands."""
    rounded = [quantize(linear.weight.data) for linear in linears.values()]
    samples = seen.samples[""]
    with substituted(list(linears.values()), rounded):
        return module_error(block, samples) / sum(output.numel() for _, _, output in samples)
