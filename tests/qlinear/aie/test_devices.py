import pytest

from qlinear.backends.aie.devices import PHX, STX, find_device
from qlinear.errors import TargetError


def test_devices_are_found_by_name():
    assert find_device("phx") is PHX and find_device("stx") is STX
    with pytest.raises(TargetError, match="unknown AIE device 'xdna9'; there are phx and stx"):
        find_device("xdna9")


def test_latency_figures_can_be_set_and_say_so():
    model = PHX.latency.set(clock_hz=1.3e9, dispatch_overhead=0)
    assert model.clock_hz == (1.3e9, "Hz", "set by the user")
    # 16 cores of 128 MACs at 1.3 GHz, of which 75.7% are reached
    assert model.macs_per_second == pytest.approx(16 * 128 * 1.3e9 * 0.757)
    names = ["cores", "macs_per_clock", "clock_hz", "efficiency", "read_bandwidth", "write_bandwidth"]
    assert [name for name, _ in model.rows()] == [*names, "dispatch_overhead"]
    assert dict(model.rows())["dispatch_overhead"] == (0.0, "s", "set by the user")
    assert PHX.latency.clock_hz.value == 1e9
    assert all(figure.source for device in (PHX, STX) for _, figure in device.latency.rows())
    with pytest.raises(TargetError, match="no parameter 'clock'; it has cores"):
        PHX.latency.set(clock=1e9)
    with pytest.raises(TargetError, match="read_bandwidth is 0"):
        PHX.latency.set(read_bandwidth=0)
