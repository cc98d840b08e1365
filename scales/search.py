"""Scale search: which factor each input channel of a linear gets. Returns scales, changes nothing.

AWQ (Lin et al., arXiv 2306.00978) tries `s = mean|x|^r` for r = 0, 1/20, ..., 19/20 and keeps the one whose rounding
error `W - Q(W s) / s` does the least harm to the output. For the output of a linear that harm is exact in closed form:
with E the error and G = X^T X the Gram matrix of the input, `||X E^T||^2 = trace(E G E^T)`, so no token is run again.
Where the inspected output is behind a nonlinearity (attention, the gated MLP), the closed form ranks the candidates
and the best few are confirmed by running the module itself on a few samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scales.observe import Call, InputStatistics

N_RATIOS = 20
N_CONFIRMED = 3

# A float weight in, the weight its codes stand for out: all the search knows of the grid.
Quantizer = Callable[[Tensor], Tensor]


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


def output_loss(error: Tensor, gram: Tensor) -> float:
    """`trace(E G E^T)`: the squared output error of a weight error `(N, K)`, summed over the tokens of `gram`."""
    return float(((error @ gram) * error).sum())


def rank(
    weights: Sequence[Tensor],
    statistics: InputStatistics,
    vector: Tensor,
    expand: Callable[[Tensor], Tensor],
    quantize: Quantizer,
) -> list[ScaleChoice]:
    """All candidates, best first, by the summed output error of `weights`, which share the input `statistics`.

    vector: the statistic `(S,)` the scales are powers of; expand: takes a scale `(S,)` to the `(K,)` input channels.
    """
    losses: list[tuple[float, ScaleChoice]] = []
    for step in range(N_RATIOS):
        choice = ScaleChoice(step / N_RATIOS, candidate(vector, step / N_RATIOS))
        scale = expand(choice.vector)
        loss = sum(output_loss(quantize(weight * scale) / scale - weight, statistics.gram) for weight in weights)
        losses.append((loss, choice))
    losses.sort(key=lambda pair: pair[0])
    return [choice for _, choice in losses]


def confirm(
    ranked: Sequence[ScaleChoice],
    module: nn.Module,
    linears: Sequence[nn.Linear],
    samples: Sequence[tuple[Tensor, Call, Tensor]],
    expand: Callable[[Tensor], Tensor],
    quantize: Quantizer,
) -> ScaleChoice:
    """The best of the first few candidates and identity, by the error of `module`'s own output on the samples."""
    identity = next(choice for choice in ranked if choice.ratio == 0)
    finalists = list(dict.fromkeys([*ranked[:N_CONFIRMED], identity]))

    def error(choice: ScaleChoice) -> float:
        scale = expand(choice.vector)
        rounded = [quantize(linear.weight.data * scale) / scale for linear in linears]
        with substituted(linears, rounded):
            return module_error(module, samples)

    return min(finalists, key=error)


def module_error(module: nn.Module, samples: Sequence[tuple[Tensor, Call, Tensor]]) -> float:
    """Summed squared difference between the module's output now and the output it had when it was observed."""
    with torch.no_grad():
        return sum(float((call(module, hidden) - output).square().sum()) for hidden, call, output in samples)


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
