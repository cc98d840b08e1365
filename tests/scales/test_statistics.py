"""A Gram matrix of few tokens, and what a solver is given of it."""

import pytest
import torch

from qlinear.grid import Grid
from qlinear.solvers.gptq import gptq
from scales.statistics import InputStatistics


def seen(inputs):
    statistics = InputStatistics.empty(inputs.shape[-1])
    statistics.add(inputs)
    statistics.complete()
    return statistics


def test_is_shrunk_by_what_few_tokens_do_not_know():
    inputs = torch.randn(37, 96, generator=torch.Generator().manual_seed(0))
    statistics = seen(inputs)
    measured = statistics.gram.clone()
    exact = inputs.double().T @ inputs.double()
    wanted = exact + 0.3 * 96 / 37 * exact.diagonal().mean() * torch.eye(96)
    with pytest.raises(KeyError), statistics.shrunk() as gram:
        assert (gram - wanted).abs().max() < 1e-4
        raise KeyError
    assert torch.equal(statistics.gram, measured)


def test_codes_of_few_tokens_hold_on_others():
    """Inputs whose covariance falls off as that of a hidden state does; the error is told by the covariance itself."""
    generator = torch.Generator().manual_seed(1)
    turned, _ = torch.linalg.qr(torch.randn(256, 256, generator=generator, dtype=torch.float64))
    spread = turned * torch.arange(1, 257, dtype=torch.float64) ** -0.5
    weight = torch.randn(64, 256, generator=generator)

    def error(gram):
        off = (gptq(weight, Grid(3, 64), gram).dequantize() - weight).double() @ spread
        return float(off.square().sum() / (weight.double() @ spread).square().sum())

    statistics = seen((torch.randn(192, 256, generator=generator, dtype=torch.float64) @ spread.T).float())
    measured = error(statistics.gram)
    with statistics.shrunk() as gram:
        assert error(gram) < 0.8 * measured
