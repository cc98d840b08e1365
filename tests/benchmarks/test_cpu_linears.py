"""How layers are timed, what their amounts are, and that every implementation multiplies by the same weight."""

import pytest
import torch

from benchmarks.cpu import linears
from benchmarks.cpu.linears import Bench, alternate, chain_length, ours, random_weight, sweep
from benchmarks.cpu.peers import Case, nibbles, onnxruntime, torch_bf16, torch_int4pack
from benchmarks.cpu.report import Kernel, Limit, Shape
from benchmarks.cpu.roofs import Roof, limits_of
from qlinear.errors import GridError
from qlinear.grid import GridWeight

SHAPE = Shape(64, 128)


def nothing() -> None: ...


def test_of_two_ways_to_a_limit_the_better_one_counts():
    ways = [Roof(Limit.READ, 4e9, nothing), Roof(Limit.READ, 4e9, nothing), Roof(Limit.FP32, 3e9, nothing)]
    limits = limits_of(ways, [[0.4, 9.0, 0.3], [0.2, 0.1, 9.0], [0.5, 0.5, 0.5]])
    assert limits.rates == pytest.approx({Limit.READ: 20.0, Limit.FP32: 6.0})


def test_a_chain_holds_that_many_bytes_of_codes():
    assert chain_length(Shape(4096, 4096), 256 << 20) == 32  # 8 MiB each
    assert chain_length(Shape(1000, 1000), 1_000_001) == 3  # 500,000 bytes each
    assert chain_length(Shape(32000, 4096), 96 << 20) == 2


def test_jobs_are_taken_in_turns_each_warmed_up(monkeypatch):
    monkeypatch.setattr(linears, "PAUSE", 0.0)
    done = []
    times = alternate([lambda: done.append("a"), lambda: done.append("b")], seconds=0.0)
    assert done == ["a", "a", "b", "b"] * linears.LEAST_ROUNDS
    assert [len(taken) for taken in times] == [linears.LEAST_ROUNDS] * 2


def test_a_measurement_is_of_one_matrix_of_the_chain(monkeypatch):
    monkeypatch.setattr(linears, "alternate", lambda jobs, seconds: [[2.0] * 5, [1.0, 2.0, 3.0, 4.0, 6.0]])
    case = Case(Kernel.W4, 4096, 10, lambda x: None)
    run = linears.measure(SHAPE, 3, [case], Bench(32, 1.0, [Roof(Limit.READ, 1e9, nothing)]))
    assert (run.shape, run.m, run.group_size) == (SHAPE, 3, 32) and run.limits.bandwidth == 0.5
    (row,) = run.rows
    assert (row.kernel, row.weight_bytes) == (Kernel.W4, 4096) and row.taken.seconds == pytest.approx(0.3)


def test_a_group_size_that_does_not_divide_is_refused_before_anything_is_timed():
    with pytest.raises(GridError, match="group size 128 does not divide a layer of 64 x 192 .*use `group_size=32 or"):
        next(sweep(Shape(64, 192), [1], Bench(128, 1.0, [])))


def test_few_rows_come_first_and_read_the_longer_chain(monkeypatch):
    chains, measured = [], []
    monkeypatch.setattr(linears, "cases", lambda shape, group_size, chain_bytes: chains.append(chain_bytes) or [])
    monkeypatch.setattr(linears, "measure", lambda shape, m, contestants, bench: measured.append(m))
    list(sweep(SHAPE, [1, 31, 32, 512], Bench(32, 1.0, [])))
    assert measured == [1, 31, 32, 512] and chains == [linears.CHAIN_BYTES, linears.SHORT_CHAIN_BYTES]
    list(sweep(SHAPE, [64], Bench(32, 1.0, [])))
    assert chains[2:] == [linears.SHORT_CHAIN_BYTES]


def test_two_codes_a_byte_the_even_one_low():
    weight = GridWeight(
        torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8),
        torch.tensor([[5, 6]], dtype=torch.uint8),
        torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16),
        4,
    )
    stored = nibbles(weight)
    assert stored["b"].tolist() == [[[0x21], [0x43]]] and stored["z"].tolist() == [0x65]
    assert stored["s"].tolist() == [0.5, 2.0]
    odd = GridWeight(weight.codes, weight.zeros[:, :1], weight.scales[:, :1], 4)
    assert nibbles(odd)["z"].tolist() == [0x05]


def product(x: torch.Tensor, weight: GridWeight) -> torch.Tensor:
    codes = weight.codes.double().view(SHAPE.n, -1, weight.group_size)
    grouped = (codes - weight.zeros.double()[..., None]) * weight.scales.double()[..., None]
    return x.double() @ grouped.view(SHAPE.n, SHAPE.k).t()


@pytest.fixture
def weight():
    torch.manual_seed(0)
    return random_weight(SHAPE, 4, 32)


def close(result: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((result.double() - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("bits, kernels", [(4, (Kernel.W4, Kernel.W4_INT8, Kernel.W4_MATMUL)), (3, (Kernel.W3,))])
def test_ours_are_packed_and_called(bits, kernels):
    found = ours(random_weight(SHAPE, bits, 32), 2)
    assert tuple(case.kernel for case in found) == kernels
    # codes, and a scale and a zero for each group of 32, padded to 64 bytes here and there
    least = SHAPE.n * SHAPE.k * bits / 8 + SHAPE.n * SHAPE.k / 32 * (2 + bits / 8)
    for case in found:
        case.passes(torch.randn(3, SHAPE.k).bfloat16())
        assert case.count == 2 and least <= case.weight_bytes <= 1.2 * least


def test_ours_multiplies_by_the_weight(weight):
    x = torch.randn(3, SHAPE.k).bfloat16()
    for result in ours(weight, 2)[-1].passes(x):
        assert close(result, product(x, weight), 0.01)


def test_torchs_multiply_by_the_same_weight():
    weight, x = random_weight(SHAPE, 4, 32), torch.randn(3, SHAPE.k).bfloat16()
    packed, dense = torch_int4pack(weight, 3), torch_bf16(weight, 9)
    assert packed.weight_bytes == 64 * 128 / 2 + 64 * 4 * 2 * 2  # codes; a scale and an offset a group, bf16
    assert (dense.weight_bytes, dense.count) == (64 * 128 * 2, 2)
    for case in (packed, dense):
        results = case.passes(x)
        assert len(results) == case.count and all(close(one, product(x, weight), 0.02) for one in results)


@pytest.mark.parametrize("kernel, tolerance", [(Kernel.ORT_FP32, 1e-5), (Kernel.ORT_INT8, 0.05)])
def test_onnx_runtime_multiplies_by_the_same_weight(kernel, tolerance):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight, x = random_weight(SHAPE, 4, 32), torch.randn(3, SHAPE.k).bfloat16()
    case = onnxruntime(weight, 2, kernel)
    assert case.weight_bytes == 64 * 128 / 2 + 64 * 4 * 4 + 64 * 4 / 2  # its scales are float32
    first = torch.from_numpy(case.passes(x)[0].numpy())  # the others have other codes
    assert close(first, product(x, weight), tolerance)
