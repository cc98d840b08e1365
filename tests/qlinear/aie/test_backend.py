import pytest
import torch

from qlinear.backends.aie.backend import AieBackend
from qlinear.backends.aie.counters import Counters
from qlinear.backends.aie.devices import PHX
from qlinear.backends.aie.tiling import tile_matmul
from qlinear.errors import TargetError
from qlinear.grid import Grid
from qlinear.packing import PackedWeight


def _layer(n=192, k=576, bits=4, group=64):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(2))
    grid = Grid(bits, group)
    return PackedWeight.pack(grid.quantize(weight, *grid.fit(weight)))


def test_names_say_that_it_is_emulated():
    assert AieBackend().name == "aie_emu/phx (emulated)"
    assert AieBackend("stx").name == "aie_emu/stx (emulated)"
    assert AieBackend().device == torch.device("cpu")
    with pytest.raises(TargetError, match="unknown AIE device 'cpu'; there are phx and stx"):
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
    with pytest.raises(TargetError, match="group size 16 cannot be tiled on phx"):
        AieBackend().prepare(_layer(group=16), None)


def test_the_tiling_of_a_prepared_layer():
    backend = AieBackend()
    prepared = backend.prepare(_layer(), None)
    assert backend.tiling(40, prepared) is tile_matmul(PHX, 40, 576, 192, 4, 64)


def test_the_meter_grows_with_every_matmul():
    backend = AieBackend(latency=PHX.latency.set(dispatch_overhead=1.0))
    prepared, meter = backend.prepare(_layer(), None), backend.meter()
    assert meter.counters == Counters()
    assert meter.latency.dispatch_overhead == (1.0, "s", "set by the user")
    backend.matmul(torch.randn(40, 576), prepared)
    prompt = meter.counters
    assert (prompt.matmuls, prompt.dispatches, prompt.useful_macs) == (1, 2, 40 * 576 * 192)
    assert prompt.padded_macs == 40 * 4096 * 4096
    backend.matmul(torch.randn(1, 576), prepared)
    token = meter.counters - prompt
    assert (token.matmuls, token.dispatches, token.useful_macs) == (1, 1, 576 * 192)
    assert token.overhead_seconds == 1.0 and 1.0 < token.modelled_seconds < 1.01
    backend.matmul(torch.randn(0, 576), prepared)
    assert meter.counters - prompt - token == Counters(matmuls=1)
    assert AieBackend().meter().latency is PHX.latency
