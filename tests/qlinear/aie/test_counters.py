import pytest

from qlinear.backends.aie.counters import ArrayMeter, Counters, cost
from qlinear.backends.aie.devices import PHX, STX
from qlinear.backends.aie.tiling import tile_matmul


def test_cost_of_a_token_by_hand():
    counted = cost(tile_matmul(PHX, 1, 4096, 4096, 4, 128), PHX.latency)
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
    counted = cost(tile_matmul(PHX, 33, 4096, 11008, 4, 128), PHX.latency)
    assert counted.dispatches == 2
    assert counted.weight_bytes == (4 + 1) * 33 * 96 * 8512
    assert counted.activation_bytes == 33 * 4096 * 2 + 2 * 2048
    assert counted.result_bytes == 33 * 12288 * 4
    assert counted.padded_macs == 33 * 4096 * 12288
    assert counted.padding_waste == pytest.approx(1 - 11008 / 12288)
    assert counted.bytes_moved == counted.weight_bytes + counted.activation_bytes + counted.result_bytes


def test_a_dispatch_takes_the_longer_of_transfer_and_compute():
    tiling = tile_matmul(STX, 2048, 4096, 4096, 4, 128)
    counted = cost(tiling, STX.latency.set(dispatch_overhead=0))
    assert counted.result_bytes == 2048 * 4096 * 2
    assert counted.compute_seconds > counted.transfer_seconds
    assert counted.modelled_seconds == counted.compute_seconds
    starved = cost(tiling, STX.latency.set(dispatch_overhead=0, read_bandwidth=1e9))
    assert starved.modelled_seconds == starved.transfer_seconds > starved.compute_seconds


def test_a_meter_adds_up_what_it_counts():
    meter = ArrayMeter(PHX.latency.set(dispatch_overhead=2.0))
    assert meter.counters == Counters()
    meter.count(tile_matmul(PHX, 33, 4096, 4096, 4, 128))
    meter.count(tile_matmul(PHX, 1, 4096, 4096, 4, 128))
    assert (meter.counters.matmuls, meter.counters.dispatches) == (2, 3)
    assert meter.counters.useful_macs == 34 * 4096 * 4096
    assert meter.counters.overhead_seconds == 6.0


def test_counters_are_added_subtracted_and_repeated():
    one, two = Counters(matmuls=1, weight_bytes=10, modelled_seconds=0.5), Counters(matmuls=2, weight_bytes=7)
    assert one + two == Counters(matmuls=3, weight_bytes=17, modelled_seconds=0.5)
    assert one - two == Counters(matmuls=-1, weight_bytes=3, modelled_seconds=0.5)
    assert one * 3 == Counters(matmuls=3, weight_bytes=30, modelled_seconds=1.5)
    assert Counters().padding_waste == 0.0
