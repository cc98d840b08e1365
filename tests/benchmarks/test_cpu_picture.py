"""The lines of the picture, by hand; and that it is drawn."""

import pytest

from benchmarks.cpu.picture import APART, STYLES, Panel, draw, middle_limits, pushed_apart, roof
from benchmarks.cpu.report import Kernel, Limit
from tests.benchmarks.reports import FASTER, SHAPE, WHOLE, linear, report

SWEEP = [linear(SHAPE, 1), linear(SHAPE, 2), linear(SHAPE, 64, FASTER)]


def test_a_line_is_value_by_m():
    panel = Panel("GB/s", lambda speed: speed.gb_s, at=1, side="right")
    assert panel.points(SWEEP, Kernel.W4) == pytest.approx({1: 14.0, 2: 14.0, 64: 14.0})
    assert panel.points(SWEEP, Kernel.ORT_INT8) == {}


def test_the_limits_are_medians_over_the_sweep():
    assert middle_limits(SWEEP).rates == {Limit.READ: 20.0, Limit.FP32: 100.0, Limit.INT16: 200.0}


@pytest.mark.parametrize(
    "m, gb_s, gflop_s",
    [
        (1, 20.0, 1e6 / 14e-6 / 1e9),  # 280 kB at 20 GB/s take 14 us, a million operations 5
        (2.8, 20.0, 200.0),  # both take 14 us
        (64, 280e3 / 320e-6 / 1e9, 200.0),  # 64 million operations at 200 GFLOP/s take 320 us
    ],
)
def test_the_roof_is_what_takes_longer(m, gb_s, gflop_s):
    speed = roof(SWEEP, m)
    assert speed.gb_s == pytest.approx(gb_s) and speed.gflop_s == pytest.approx(gflop_s)


def test_names_are_pushed_apart_and_no_further():
    assert pushed_apart([0.1, 0.5]) == [0.1, 0.5]
    assert pushed_apart([0.5, 0.5]) == pytest.approx([0.5 - APART / 2, 0.5 + APART / 2])
    # the third touches the pair once it is spread: all three around their mean
    apart = pushed_apart([0.50, 0.50, 0.51])
    assert apart == pytest.approx([1.51 / 3 - APART, 1.51 / 3, 1.51 / 3 + APART])
    assert pushed_apart([]) == []


def test_the_picture_names_every_line_and_limit(tmp_path):
    pytest.importorskip("matplotlib")
    draw(WHOLE, tmp_path / "made" / "cpu")
    picture = (tmp_path / "made" / "cpu.svg").read_text()
    for kernel in (Kernel.W4, Kernel.W3, Kernel.INT4PACK, Kernel.DENSE):
        assert picture.count(STYLES[kernel].label) == 2
    assert "read bandwidth, 20 GB/s" in picture and "int16 peak, 200 GFLOP/s" in picture
    assert STYLES[Kernel.ORT_INT8].label not in picture and (tmp_path / "made" / "cpu.png").is_file()


def test_without_a_sweep_there_is_no_picture(tmp_path):
    draw(report(linear(SHAPE, 1)), tmp_path / "cpu")
    assert not list(tmp_path.iterdir())
