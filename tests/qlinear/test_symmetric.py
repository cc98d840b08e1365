"""Symmetric grids: every solver leaves the zero point in the middle, and does the best it can around it."""

import pytest
import torch

from qlinear.grid import Grid, GridWeight
from qlinear.packing import PackedWeight, middle_zeros
from qlinear.sizes import BITS
from tests.qlinear.test_solvers import SOLVERS, correlated, groups_of_error, output_error, random_weight


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("known", [True, False])
def test_the_zero_point_stays_in_the_middle(solver, bits, known):
    """Of skewed weights too, whose zero points would be anywhere else, and of rows that lie where codes end."""
    ends = torch.linspace(1, 2, 30).unsqueeze(1).expand(30, 192)
    weight, inputs = torch.cat([random_weight(21, 192).add(1), ends]), correlated(192, 300)
    gram = (inputs.t() @ inputs).float() if known else None
    made = SOLVERS[solver](weight, Grid(bits, 64, symmetric=True), gram)
    assert made.zeros.dtype == torch.uint8 and made.zeros.shape == made.scales.shape == (51, 3)
    assert set(made.zeros.flatten().tolist()) == {2 ** (bits - 1)}
    assert made.codes.max() < 2**bits and bool((made.scales > 0).all())
    free = SOLVERS[solver](weight, Grid(bits, 64), gram)
    assert set(free.zeros.flatten().tolist()) != {2 ** (bits - 1)}


def literal_search(group: torch.Tensor, bits: int, gram: torch.Tensor) -> float:
    """The least error of one group `(group_size,)` among eleven ranges around 0, float64."""
    middle, full = 2 ** (bits - 1), torch.tensor(2 * group.abs().max().item() / (2**bits - 1)).bfloat16()

    def error(scale: float) -> float:
        off = (group.double() / scale).round().clamp(-middle, middle - 1) * scale - group.double()
        return float(off @ gram.double() @ off)

    return min(error((full.float() * (1 - step / 20)).bfloat16().item()) for step in range(11))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("known", [True, False])
def test_hqq_is_the_search_of_the_range(bits, known):
    weight = random_weight(7, 128).pow(3)
    inputs = correlated(128, 500) if known else torch.eye(128, dtype=torch.float64)
    gram = (inputs.t() @ inputs).float()
    made = SOLVERS["hqq"](weight, Grid(bits, 32, symmetric=True), gram if known else None)
    found = groups_of_error(made, weight, inputs)
    for row in range(7):
        for part in range(4):
            cut = slice(32 * part, 32 * part + 32)
            assert found[row, part] == pytest.approx(literal_search(weight[row, cut], bits, gram[cut, cut]), rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_each_step_errs_less_than_the_one_before(bits):
    weight, inputs = random_weight(32, 256), correlated(256, 1500)
    gram, grid = (inputs.t() @ inputs).float(), Grid(bits, 64, symmetric=True)
    errors = {name: output_error(solve(weight, grid, gram), weight, inputs) for name, solve in SOLVERS.items()}
    assert errors["hqq"] < 0.9 * errors["rtn"]
    assert errors["gptq"] < 0.6 * errors["hqq"]


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (7, 3), (32, 2), (37, 5), (129, 1)])
@pytest.mark.parametrize("bits", BITS)
def test_the_zero_points_that_are_not_stored_are_what_would_be(bits, rows, groups):
    zeros = torch.full((rows, groups), 2 ** (bits - 1), dtype=torch.uint8)
    codes = torch.zeros(rows, groups * 32, dtype=torch.uint8)
    packed = PackedWeight.pack(GridWeight(codes, zeros, torch.ones(rows, groups, dtype=torch.bfloat16), bits))
    found = middle_zeros(bits, rows, groups)
    assert found.dtype == torch.int32 and found.is_contiguous() and torch.equal(found, packed.zeros)
