import pytest
import torch

from qlinear.backends.aie.backend import AieBackend, find_npu
from qlinear.backends.aie.counters import Counters, cost
from qlinear.backends.aie.devices import PHX, STX
from qlinear.backends.aie.tiling import plan_matmul
from qlinear.errors import TargetError
from qlinear.grid import encode, fit
from qlinear.packing import PackedWeight


def _layer(n=192, k=576, bits=4, group=64):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(2))
    scales, zeros = fit(weight, bits, group)
    return PackedWeight.pack(encode(weight, scales, zeros, bits))


def test_names_say_that_it_is_emulated():
    assert AieBackend().name == "aie_emu/phx (emulated)"
    assert AieBackend("stx").name == "aie_emu/stx (emulated)"
    assert AieBackend().device == torch.device("cpu")
    with pytest.raises(TargetError, match="unknown AIE device 'cpu'"):
        AieBackend("cpu")


@pytest.mark.parametrize("device", ["phx", "stx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [3, 4])
def test_any_leading_shape_in_the_dtype_of_x(device, dtype, bits):
    backend, layer = AieBackend(device), _layer(bits=bits)
    grid, bias = layer.unpack(), torch.linspace(-1, 1, 192)
    prepared = backend.prepare(layer, bias)
    exact = (grid.codes.double().view(192, 9, 64) - grid.zeros.double()[..., None]) * grid.scales.double()[..., None]
    exact = exact.to(torch.bfloat16).double().view(192, 576)
    for shape in [(576,), (1, 576), (2, 3, 576), (0, 576), (2, 0, 576)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
        out = backend.matmul(x, prepared)
        assert out.shape == (*shape[:-1], 192) and out.dtype == dtype
        expected = x.to(torch.bfloat16).double() @ exact.t() + bias.to(torch.bfloat16).double()
        torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-4)
        assert torch.equal(out, out.to(torch.bfloat16).to(dtype))


def test_a_bias_is_optional():
    backend, layer, x = AieBackend(), _layer(), torch.randn(2, 576)
    without, zero = backend.prepare(layer, None), backend.prepare(layer, torch.zeros(192))
    assert torch.equal(backend.matmul(x, without), backend.matmul(x, zero))


def test_what_the_array_cannot_run_is_said_when_it_is_prepared():
    with pytest.raises(TargetError, match="group size 16 cannot be planned on phx"):
        AieBackend().prepare(_layer(group=16), None)


def test_the_plan_of_a_prepared_layer():
    backend = AieBackend()
    prepared = backend.prepare(_layer(), None)
    assert backend.plan(40, prepared) is plan_matmul(PHX, 40, 576, 192, 4, 64)


def test_cost_of_a_token_by_hand():
    counted = cost(plan_matmul(PHX, 1, 4096, 4096, 4, 128), PHX.latency)
    assert counted.weight_bytes == 33 * 32 * 8512
    assert counted.activation_bytes == 4096 * 2 + 2048
    assert counted.result_bytes == 4096 * 4
    assert counted.useful_macs == counted.padded_macs == 4096 * 4096
    assert counted.padding_waste == 0
    assert (counted.matmuls, counted.dispatches) == (1, 1)
    transfer = (33 * 32 * 8512 + 4096 * 2 + 2048 + 4096 * 4) / 37e9
    assert counted.transfer_seconds == pytest.approx(transfer)
    assert counted.compute_seconds == pytest.approx(4096 * 4096 / (16 * 128 * 1e9 * 0.757))
    assert counted.modelled_seconds == pytest.approx(transfer + 0.4e-3)


def test_cost_of_a_prompt_by_hand():
    # 33 rows are 32 + 1; 32 rows pass the weight 8 at a time. N = 11008 is padded to 12288.
    counted = cost(plan_matmul(PHX, 33, 4096, 11008, 4, 128), PHX.latency)
    assert counted.dispatches == 2
    assert counted.weight_bytes == (4 + 1) * 33 * 96 * 8512
    assert counted.activation_bytes == 33 * 4096 * 2 + 2 * 2048
    assert counted.result_bytes == 33 * 12288 * 4
    assert counted.padded_macs == 33 * 4096 * 12288
    assert counted.padding_waste == pytest.approx(1 - 11008 / 12288)
    assert counted.bytes_moved == counted.weight_bytes + counted.activation_bytes + counted.result_bytes


def test_a_dispatch_takes_the_longer_of_transfer_and_compute():
    plan = plan_matmul(STX, 2048, 4096, 4096, 4, 128)
    counted = cost(plan, STX.latency.set(dispatch_overhead=0))
    assert counted.result_bytes == 2048 * 4096 * 2
    assert counted.compute_seconds > counted.transfer_seconds
    assert counted.modelled_seconds == counted.compute_seconds
    starved = cost(plan, STX.latency.set(dispatch_overhead=0, read_bandwidth=1e9))
    assert starved.modelled_seconds == starved.transfer_seconds > starved.compute_seconds


def test_counters_grow_are_subtracted_and_reset():
    backend = AieBackend(latency=PHX.latency.set(dispatch_overhead=1.0))
    prepared = backend.prepare(_layer(), None)
    assert backend.counters == Counters()
    backend.matmul(torch.randn(40, 576), prepared)
    prompt = backend.counters
    assert (prompt.matmuls, prompt.dispatches, prompt.useful_macs) == (1, 2, 40 * 576 * 192)
    assert prompt.padded_macs == 40 * 4096 * 4096
    backend.matmul(torch.randn(1, 576), prepared)
    token = backend.counters - prompt
    assert (token.matmuls, token.dispatches, token.useful_macs) == (1, 1, 576 * 192)
    assert token.overhead_seconds == 1.0 and 1.0 < token.modelled_seconds < 1.01
    assert prompt + token == backend.counters
    backend.counters = Counters()
    backend.matmul(torch.randn(0, 576), prepared)
    assert backend.counters == Counters(matmuls=1)


def test_npu_search_says_what_was_found(tmp_path):
    missing = str(find_npu(tmp_path / "accel0", "no_such_module"))
    assert missing == f"no {tmp_path}/accel0 (amdxdna driver), no no_such_module module; every matmul is emulated"
    (tmp_path / "accel0").touch()
    found = find_npu(tmp_path / "accel0", "json")
    assert found.driver and found.runtime
    assert str(found) == f"found {tmp_path}/accel0 (amdxdna driver), found json module; every matmul is emulated"
