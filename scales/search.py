"""Scale search: which factor each input channel of a linear gets. Returns scales, changes nothing.

AWQ (Lin et al., arXiv 2306.00978) tries `s = mean|x|^r` for r = 0, 1/20, ..., 19/20 and keeps the one whose rounding
error `W - Q(W s) / s` does the least harm to the output. For the output of a linear that harm is exact in closed form:
with E the error and G = X^T X the Gram matrix of the input, `||X E^T||^2 = trace(E G E^T)`, so no token is run again.
Where the inspected output is behind a nonlinearity (attention, the gated MLP), the closed form ranks the candidates
and the best few are confirmed by running the module itself on a few samples.

The loss is a sum over output rows, so some of them, the same for all candidates, tell which candidates are worth the
whole sum; of a large layer, the best few are told apart on more of its rows, and again not on all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scales.calls import Call
from scales.ranks import ALONE, Ranks
from scales.statistics import PANEL

N_RATIOS = 20
N_CONFIRMED = 5

# A loss that takes more multiplications than this, some 0.2 s, is found on a sample of the weight's rows.
WHOLE_PRODUCTS = 2**33
LOSS_ROWS = 256


@dataclass(frozen=True)
class Round:
    """Of the ranking: how many of the best candidates so far it orders anew, and on how many rows of each weight.

    whole_products: all rows are taken where a loss takes no more multiplications than that.
    """

    candidates: int
    rows: int
    whole_products: int


ROUNDS = (Round(N_RATIOS, 128, 0), Round(N_CONFIRMED, 512, WHOLE_PRODUCTS))

# Rows rounded at a time hold at most this many weights: no more than that of a quantizer's temporaries is needed.
CHUNK_WEIGHTS = 2**20

# A float weight in, the weight its codes stand for out: all the search knows of the grid.
Quantizer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rounding:
    """What candidates are judged with: plain rounding in groups of `group_size`, whatever chooses the codes later."""

    quantize: Quantizer
    group_size: int


@dataclass(frozen=True, eq=False)
class ScaleChoice:
    """ratio: the exponent r; vector: `s`, float32, all ones where r is 0."""

    ratio: float
    vector: Tensor


def candidate(mean_abs: Tensor, ratio: float) -> Tensor:
    """`mean_abs ** ratio`, centred so that the extremes of the live channels lie evenly around 1; dead channels get 1.

    Computed in float32, each root by itself: in half precision, `max * min` overflows.
    """
    live = mean_abs > 0
    if ratio == 0 or not live.any():
        return torch.ones_like(mean_abs)
    scale = mean_abs.pow(ratio).clamp(min=1e-4)
    centre = scale[live].max().sqrt() * scale[live].min().sqrt()
    return torch.where(live, scale / centre, torch.ones_like(scale))


def candidates(mean_abs: Tensor) -> list[ScaleChoice]:
    """What is tried for the statistic `(S,)` of an input."""
    return [ScaleChoice(step / N_RATIOS, candidate(mean_abs, step / N_RATIOS)) for step in range(N_RATIOS)]


def output_loss(error: Tensor, gram: Tensor) -> float:
    """`trace(E G E^T)`: the squared output error of a weight error `(N, K)`, summed over the tokens of `gram`.

    G is symmetric: what lies below its diagonal panels counts twice, and what lies above is not multiplied.
    """
    loss = 0.0
    for i in range(0, len(gram), PANEL):
        j = i + PANEL
        part = error[:, i:j]
        below = error[:, j:] @ gram[j:, i:j]  # zeros for the last panel, which has nothing below
        loss += float(torch.addmm(below, part, gram[i:j, i:j], beta=2).mul_(part).sum(0).sum())
    return loss


def sample_rows(weight: Tensor) -> Tensor:
    """Evenly spaced rows of a `(N, K)` weight: `(LOSS_ROWS, K)`, or all of them if that is not much work."""
    n, k = weight.shape
    if n <= LOSS_ROWS or n * k**2 <= WHOLE_PRODUCTS:
        return weight
    return weight[_evenly(n, LOSS_ROWS, weight)]


def _evenly(n: int, count: int, like: Tensor) -> Tensor:
    """`count` of the numbers below `n`, each the middle of its share."""
    return (2 * torch.arange(count, device=like.device) + 1) * n // (2 * count)


def relative_loss(rounded: Tensor, weight: Tensor, gram: Tensor) -> float:
    """The squared output error of `rounded` as a share of the squared output of `weight`, both `(N, K)`.

    Of large layers, hand in the same `sample_rows` of both.
    """
    whole = output_loss(weight, gram)
    return output_loss(rounded - weight, gram) / whole if whole > 0 else 0.0


def quantize_by_rows(weight: Tensor, quantize: Quantizer, out: Tensor | None = None) -> Tensor:
    """`quantize(weight)`, some rows of the `(N, K)` weight at a time: in a processor's cache, and in little memory.

    out: where to put it; it may be the weight itself.
    """
    out = torch.empty_like(weight) if out is None else out
    rows = _rows_at_a_time(weight)
    for part, place in zip(weight.split(rows), out.split(rows), strict=True):
        place.copy_(quantize(part))
    return out


def _rows_at_a_time(weight: Tensor) -> int:
    return max(1, CHUNK_WEIGHTS // weight.shape[1])


def rank(
    choices: Sequence[ScaleChoice],
    weighed: Sequence[tuple[Tensor, Tensor]],
    expand: Callable[[Tensor], Tensor],
    quantize: Quantizer,
    *,
    ranks: Ranks = ALONE,
) -> list[ScaleChoice]:
    """The choices, best first, by the summed output error of weights `(N, K)`, each given with its input's Gram matrix.

    Only the first `N_CONFIRMED` are told apart on as many rows as can be; those behind are as the first round had them.
    expand: takes a scale `(S,)` to the `(K,)` input channels.
    """
    ranked = list(choices)
    weights, grams = [weight for weight, _ in weighed], [gram for _, gram in weighed]
    orders = [_by_harm(weight, gram, quantize) for weight, gram in weighed]
    for turn in ROUNDS:
        samples = [_draw(weight, order, turn) for weight, order in zip(weights, orders, strict=True)]

        def loss(choice: ScaleChoice, samples=samples) -> float:
            scale = expand(choice.vector)
            errors = [(quantize(part * scale).div_(scale).sub_(part), stand_for) for part, stand_for in samples]
            pairs = zip(errors, grams, strict=True)
            return sum(output_loss(error.mul_(stand_for.sqrt()), gram) for (error, stand_for), gram in pairs)

        judged = ranked[: turn.candidates]
        losses = ranks.share([1.0] * len(judged), lambda index, judged=judged, loss=loss: loss(judged[index]))
        ranked[: turn.candidates] = [judged[i] for i in sorted(range(len(judged)), key=losses.__getitem__)]
        if all(len(part) == len(weight) for (part, _), weight in zip(samples, weights, strict=True)):
            break
    return ranked


def _by_harm(weight: Tensor, gram: Tensor, quantize: Quantizer) -> Tensor:
    """Numbers `(N,)` of the rows of a `(N, K)` weight by falling loss of plain rounding, as `sum_k G_kk e_k^2`.

    That is the loss with the correlations between channels left out: enough for an order, and found in no time.
    """
    parts = weight.split(_rows_at_a_time(weight))
    harm = torch.cat([(quantize(part) - part).square().mul_(gram.diagonal()).sum(1) for part in parts])
    return harm.argsort(descending=True, stable=True)


def _draw(weight: Tensor, order: Tensor, turn: Round) -> tuple[Tensor, Tensor]:
    """Rows `(R, K)` of a weight and how many rows each stands for, `(R, 1)`; `order` as of `_by_harm`.

    Half of them are the first in order, which stand for themselves: a few rows, those that write a model's outlier
    channels, may have most of the loss. The others are evenly spaced over the rest.
    """
    n, k = weight.shape
    if n <= turn.rows or n * k**2 <= turn.whole_products:
        return weight, weight.new_ones(n, 1)
    first = turn.rows // 2
    rest = order[first:]
    drawn = torch.cat([order[:first], rest[_evenly(len(rest), turn.rows - first, rest)]])
    stand_for = weight.new_ones(turn.rows, 1)
    stand_for[first:] = len(rest) / (turn.rows - first)
    return weight[drawn], stand_for


def confirm(
    ranked: Sequence[ScaleChoice],
    module: nn.Module,
    linears: Sequence[nn.Linear],
    samples: Sequence[tuple[Tensor, Call, Tensor]],
    expand: Callable[[Tensor], Tensor],
    quantize: Quantizer,
    *,
    ranks: Ranks = ALONE,
) -> ScaleChoice:
    """The best of the first few candidates and identity, by the error of `module`'s own output on the samples."""
    identity = next(choice for choice in ranked if choice.ratio == 0)
    finalists = list(dict.fromkeys([*ranked[:N_CONFIRMED], identity]))

    def error(choice: ScaleChoice) -> float:
        scale = expand(choice.vector)
        rounded = [linear.weight.data * scale for linear in linears]
        for weight in rounded:
            quantize_by_rows(weight, quantize, out=weight).div_(scale)
        with substituted(linears, rounded):
            return module_error(module, samples)

    errors = ranks.share([1.0] * len(finalists), lambda index: error(finalists[index]))
    return finalists[min(range(len(finalists)), key=errors.__getitem__)]


def module_error(module: nn.Module, samples: Sequence[tuple[Tensor, Call, Tensor]], ranks: Ranks = ALONE) -> float:
    """Summed squared difference between the module's output now and the output it had when it was observed."""

    def error(index: int) -> float:
        hidden, call, output = samples[index]
        return _squares(call(module, hidden) - output)

    with torch.no_grad():
        return sum(ranks.share([1.0] * len(samples), error))


def _squares(values: Tensor) -> float:
    """Their sum, first over all dimensions but the last: one thread's work each, however many there are."""
    return float(values.square().reshape(-1, values.shape[-1]).sum(0).sum())


@contextmanager
def substituted(linears: Sequence[nn.Linear], weights: Sequence[Tensor]) -> Iterator[None]:
    """The linears compute with other weights inside the `with`, and with their own again after it."""
    originals = [linear.weight.data for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = weight
        yield
    finally:
        for linear, weight in zip(linears, originals, strict=True):
            linear.weight.data = weight
