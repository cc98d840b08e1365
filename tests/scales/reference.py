"""AWQ's arithmetic written out plainly, in float64: what the tests of the search compare it with."""

import torch
from torch import Tensor

RATIOS = [step / 20 for step in range(20)]


def round_to_grid(weight: Tensor, bits: int = 3, group_size: int = 32) -> Tensor:
    """The usual asymmetric rounding per group, with 0 in the range, in float64; `(N, K)` in the dtype it came in."""
    levels = 2**bits - 1
    groups = weight.double().reshape(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / levels).clamp(min=1e-30)
    zero = (-low / scale).round()
    codes = (groups / scale + zero).round().clamp(0, levels)
    return ((codes - zero) * scale).view_as(weight).to(weight.dtype)


def literal_candidate(x: Tensor, ratio: float) -> Tensor:
    scale = x.abs().mean(0).double() ** ratio
    return scale / (scale.max() * scale.min()) ** 0.5


def literal_losses(x: Tensor, weights: list[Tensor]) -> list[float]:
    """Squared error of the concatenated outputs for every ratio, token by token, as llm-awq's auto_scale finds it."""
    losses = []
    for ratio in RATIOS:
        scale = literal_candidate(x, ratio)
        loss = 0.0
        for weight in weights:
            rounded = round_to_grid(weight.double() * scale) / scale
            loss += sum(float((token @ (weight.double() - rounded).t()).square().sum()) for token in x)
        losses.append(loss)
    return losses


def outlier_inputs(tokens: int, channels: int, seed: int = 0) -> Tensor:
    """Correlated inputs `(tokens, channels)` in float64, with a few channels much larger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(channels, generator=generator, dtype=torch.float64).mul(6).sub(3).exp()
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64) / channels**0.5
    return torch.randn(tokens, channels, generator=generator, dtype=torch.float64) @ mixing * magnitude


def random_weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    """`(rows, columns)` float32 with heavy tails, so that clipping and scaling both have something to win."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(rows, columns, generator=generator) ** 3 / 4
