"""Solvers against what they promise, reckoned in float64: codes on the grid, and less error than plain rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlinear.errors import CalibrationError
from qlinear.grid import Grid, GridWeight
from qlinear.solvers.gptq import gptq, inverse_factor
from qlinear.solvers.hqq import half_quadratic, hqq
from qlinear.solvers.ranges import search_ranges
from qlinear.solvers.rtn import rtn

SOLVERS = {"rtn": rtn, "hqq": hqq, "gptq": gptq}


def correlated(k: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Inputs `(tokens, k)` float64 whose channels hang together and differ in size, a few of them by far."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, k, generator=generator) @ torch.randn(k, k, generator=generator) / k**0.5
    return (mixed * torch.rand(k, generator=generator).mul(3).exp()).double()


def random_weight(n: int, k: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def output_error(codes: GridWeight, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    """||X (Q - W)^T||^2, in float64, from the tokens themselves."""
    return float((inputs @ (codes.dequantize().double() - weight.double()).t()).square().sum())


def groups_of_error(codes: GridWeight, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """What each row and group alone adds to the output, squared and summed over the tokens, float64."""
    n, k = weight.shape
    error = (codes.dequantize().double() - weight.double()).view(n, -1, codes.group_size)
    parts = inputs.view(len(inputs), -1, codes.group_size)
    return torch.einsum("tgk,ngk->ngt", parts, error).square().sum(-1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_codes_lie_on_the_grid(solver, bits, group_size):
    weight, inputs = random_weight(37, 768), correlated(768, 600)
    for gram in (None, (inputs.t() @ inputs).float()):
        made = SOLVERS[solver](weight, Grid(bits, group_size), gram)
        assert made.codes.shape == (37, 768) and made.codes.dtype == torch.uint8 and made.codes.is_contiguous()
        assert made.zeros.shape == made.scales.shape == (37, 768 // group_size)
        assert made.scales.dtype == torch.bfloat16 and made.zeros.dtype == torch.uint8
        assert max(int(made.codes.max()), int(made.zeros.max())) < 2**bits
        again = SOLVERS[solver](weight, Grid(bits, group_size), gram)
        assert torch.equal(made.codes, again.codes) and torch.equal(made.scales, again.scales)


@pytest.mark.parametrize("bits", [3, 4])
def test_each_step_errs_less_than_the_one_before(bits):
    weight, inputs = random_weight(48, 384), correlated(384, 2000)
    gram = (inputs.t() @ inputs).float()
    errors = {
        name: output_error(solve(weight, Grid(bits, 64), gram), weight, inputs) for name, solve in SOLVERS.items()
    }
    assert errors["hqq"] < 0.9 * errors["rtn"]
    assert errors["gptq"] < 0.5 * errors["hqq"]


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("known", [True, False])
def test_hqq_takes_the_better_grid_for_each_group(bits, known):
    weight = random_weight(29, 256).pow(3)  # long tails, which a narrower range or a moved zero point leaves out
    inputs = correlated(256, 1000) if known else torch.eye(256, dtype=torch.float64)
    gram = (inputs.t() @ inputs).float() if known else None
    made = groups_of_error(SOLVERS["hqq"](weight, Grid(bits, 64), gram), weight, inputs)
    searched = Grid(bits, 64).quantize(weight, *search_ranges(weight, Grid(bits, 64), gram))
    shifted = Grid(bits, 64).quantize(weight, *half_quadratic(weight, Grid(bits, 64)))
    for other in (searched, shifted, SOLVERS["rtn"](weight, Grid(bits, 64))):
        assert (made <= groups_of_error(other, weight, inputs) * (1 + 1e-4) + 1e-9).all()
    assert made.sum() < 0.98 * groups_of_error(SOLVERS["rtn"](weight, Grid(bits, 64)), weight, inputs).sum()


def literal_search(group: torch.Tensor, bits: int, gram: torch.Tensor) -> float:
    """The least error of one group `(group_size,)`: ten narrower ranges first, then the zero points beside, float64."""
    levels = 2**bits - 1
    low, high = min(group.min().item(), 0.0), max(group.max().item(), 0.0)
    full = torch.tensor((high - low) / levels).bfloat16()
    zero = min(max(round(-low / full.item()), 0), levels)

    def error(scale: float, origin: int) -> float:
        off = ((group.double() / scale + origin).round().clamp(0, levels) - origin) * scale - group.double()
        return float(off @ gram.double() @ off)

    scales = [(full.float() * (1 - step / 20)).bfloat16().item() for step in range(11)]
    best = min(scales, key=lambda scale: error(scale, zero))
    return min(error(best, min(max(zero + step, 0), levels)) for step in (0, -1, 1))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("known", [True, False])
def test_ranges_are_searched_as_promised(bits, known):
    weight = random_weight(9, 128).pow(3)
    inputs = correlated(128, 500) if known else torch.eye(128, dtype=torch.float64)
    gram = (inputs.t() @ inputs).float()
    searched = Grid(bits, 32).quantize(weight, *search_ranges(weight, Grid(bits, 32), gram if known else None))
    found = groups_of_error(searched, weight, inputs)
    for row in range(9):
        for part in range(4):
            cut = slice(32 * part, 32 * part + 32)
            assert found[row, part] == pytest.approx(literal_search(weight[row, cut], bits, gram[cut, cut]), rel=1e-3)


def test_half_quadratic_moves_the_zero_point_and_leaves_the_scale():
    weight = random_weight(64, 128).exp()  # skewed, so that the mean error of plain rounding is not zero
    grid = Grid(3, 64)
    scales, zeros = half_quadratic(weight, grid)
    plain_scales, plain_zeros = grid.fit(weight)
    assert torch.equal(scales, plain_scales)
    moved = grid.quantize(weight, scales, zeros).dequantize() - weight
    plain = grid.quantize(weight, plain_scales, plain_zeros).dequantize() - weight
    assert moved.abs().mean() <= plain.abs().mean() * 1.001


def damped(gram: torch.Tensor) -> torch.Tensor:
    """One hundredth of the mean diagonal added to it, float64."""
    gram = gram.double()
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


class Columns:
    """A weight, the scale and zero of each of its columns, and the Gram matrix, by falling activation, in float64."""

    def __init__(self, weight: torch.Tensor, made: GridWeight, gram: torch.Tensor):
        self.order = sorted(range(len(gram)), key=lambda column: -gram[column, column].item())
        spread = [part.double().repeat_interleave(made.group_size, 1) for part in (made.scales, made.zeros)]
        self.weight, self.scales, self.zeros = (part.double()[:, self.order] for part in (weight, *spread))
        self.gram = gram.double()[self.order][:, self.order]
        self.levels = 2**made.bits - 1

    def round(self, column: int, values: torch.Tensor) -> torch.Tensor:
        return (values / self.scales[:, column] + self.zeros[:, column]).round().clamp(0, self.levels)

    def value(self, column: int, codes: torch.Tensor) -> torch.Tensor:
        return (codes - self.zeros[:, column]) * self.scales[:, column]

    def in_place(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes by falling activation, back in the order of the weight."""
        back = torch.empty_like(codes)
        back[:, self.order] = codes
        return back


def literal_compensation(columns: Columns) -> torch.Tensor:
    """Optimal brain surgeon, column by column, with the inverse of what is left reckoned anew each time."""
    hessian, weight = damped(columns.gram), columns.weight.clone()
    codes = torch.empty_like(weight)
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        codes[:, column] = columns.round(column, weight[:, column])
        error = (weight[:, column] - columns.value(column, codes[:, column])) / inverse[0, 0]
        weight[:, column:] -= torch.outer(error, inverse[0])
    return codes


def literal_descent(columns: Columns, codes: torch.Tensor, passes: int) -> torch.Tensor:
    """Each column in turn moves to where the output error is least, the others standing still."""
    codes = codes.clone()
    for column in list(range(codes.shape[1])) * passes:
        off = (codes - columns.zeros) * columns.scales - columns.weight
        off[:, column] = 0
        best = columns.weight[:, column] - off @ columns.gram[:, column] / columns.gram[column, column]
        codes[:, column] = columns.round(column, best)
    return codes


@pytest.fixture(params=["ieee", "bf16"])
def library(request):
    """Both that torch multiplies float32 matrices with on an x86 CPU: the second asks for oneDNN."""
    if request.param == "bf16" and getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"):
        pytest.skip("this processor has matrix tiles, which take bfloat16")
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, request.param
    yield
    matmul.fp32_precision = before


@pytest.fixture
def passes(monkeypatch):
    """How often the codes are visited again, to be set."""
    return lambda count: monkeypatch.setattr(sys.modules["qlinear.solvers.gptq"], "PASSES", count)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("k", [96, 320])  # less than a block of columns, and a few with a rest
def test_compensation_is_that_of_the_paper(bits, k, library, passes):
    passes(0)
    weight, inputs = random_weight(23, k), correlated(k, 3 * k)
    gram = (inputs.t() @ inputs).float()
    made = gptq(weight, Grid(bits, 32), gram)
    columns = Columns(weight, made, gram)
    expected = columns.in_place(literal_compensation(columns))
    assert (made.codes == expected).float().mean() > 0.995  # float32 tips a tie here and there


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("k", [96, 320])
def test_then_every_code_is_visited_twice(bits, k, library):
    weight, inputs = random_weight(23, k), correlated(k, 3 * k)
    gram = (inputs.t() @ inputs).float()
    made = gptq(weight, Grid(bits, 32), gram)
    columns = Columns(weight, made, gram)
    expected = columns.in_place(literal_descent(columns, literal_compensation(columns), passes=2))
    assert (made.codes == expected).float().mean() > 0.995


ON_THREADS = """
import torch
from qlinear.solvers.gptq import inverse_factor

inputs = torch.randn(900, 1500, generator=torch.Generator().manual_seed(0))
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    print(hash(inverse_factor(inputs.t() @ inputs).numpy().tobytes()))
"""


def test_the_factor_is_the_same_on_any_number_of_threads():
    """With what the command asks of Intel's library before anything is multiplied."""
    environment = {**os.environ, "MKL_CBWR": "AUTO,STRICT", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", ON_THREADS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.split()) == 3 and len(set(done.stdout.split())) == 1


def test_a_matrix_that_no_damping_helps_is_refused():
    gram = torch.eye(160)
    gram[70, 3] = gram[3, 70] = torch.nan
    with pytest.raises(CalibrationError, match="are they finite"):
        inverse_factor(gram)


@pytest.mark.parametrize("k", [96, 128, 300, 1224])  # below, at and above a block of 128; above a panel of 1024
def test_the_factor_is_that_of_the_damped_inverse(k, library):
    inputs = correlated(k, 3 * k)
    gram = (inputs.t() @ inputs).float()
    factor = inverse_factor(gram).double()
    assert torch.equal(factor, factor.tril())
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(factor.t() @ factor @ damped(gram), eye, rtol=0, atol=1e-3)


@pytest.mark.parametrize("bits", [3, 4])
def test_visiting_again_only_lessens_the_error_and_ends_where_no_code_wants_to_move(bits, passes):
    weight, inputs = random_weight(31, 160), correlated(160, 700)
    gram = (inputs.t() @ inputs).float()
    errors = []
    for count in (0, 1, 2, 3, 20):
        passes(count)
        made = gptq(weight, Grid(bits, 32), gram)
        errors.append(output_error(made, weight, inputs))
    assert all(after <= before * (1 + 1e-6) for before, after in zip(errors, errors[1:], strict=False))
    assert errors[1] < 0.99 * errors[0]
    for column in range(0, 160, 7):
        for step in (-1, 1):
            codes = made.codes.short()
            codes[:, column] = (codes[:, column] + step).clamp(0, 2**bits - 1)
            moved = GridWeight(codes.to(torch.uint8), made.zeros, made.scales, bits)
            assert output_error(moved, weight, inputs) >= errors[-1] * (1 - 1e-5)


@pytest.mark.parametrize("bits", [3, 4])
def test_rows_are_solved_alike_however_many_at_a_time(bits, monkeypatch):
    weight, inputs = random_weight(45, 192), correlated(192, 900)
    gram = (inputs.t() @ inputs).float()
    whole = SOLVERS["gptq"](weight, Grid(bits, 64), gram)
    monkeypatch.setattr(sys.modules["qlinear.solvers.gptq"], "CHUNK_WEIGHTS", 11 * 192)
    parts = SOLVERS["gptq"](weight, Grid(bits, 64), gram)
    assert (whole.codes == parts.codes).float().mean() > 0.995  # float32 tips a tie here and there
    assert torch.equal(whole.scales, parts.scales) and torch.equal(whole.zeros, parts.zeros)
    for rows, part in zip((slice(0, 20), slice(20, 45)), whole.split((20, 25)), strict=True):
        assert torch.equal(part.dequantize(), whole.dequantize()[rows])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tokens", [0, 5])
def test_channels_the_text_never_moved_are_rounded_all_the_same(solver, tokens):
    weight, inputs = random_weight(16, 128), correlated(128, tokens)
    inputs[:, 3] = 0
    made = SOLVERS[solver](weight, Grid(4, 64), (inputs.t() @ inputs).float())
    step = made.scales.float().repeat_interleave(64, 1)
    assert ((made.dequantize() - weight).abs() / step)[:, 3].max() < 8
    assert torch.isfinite(made.dequantize()).all()
