"""Speeds, shares and ratios against arithmetic written out here; and the file that holds them."""

import json
from dataclasses import replace

import pytest

from benchmarks.cpu.report import Engine, Kernel, Limit, Limits, Report, Timed, Way
from tests.benchmarks.reports import FASTER, LIMITS, MODEL, OTHER, SHAPE, WHOLE, linear, report, start


def test_times_are_their_median_and_the_distance_of_their_deciles():
    # of 9 values the deciles are the values themselves: 8 - 0 = 8 apart, around 4 + 1
    assert Timed.of([float(i) for i in (9, 1, 2, 3, 8, 4, 5, 6, 7)]) == Timed(5.0, 8 / 5)
    assert Timed.of([2.0, 4.0]).seconds == 3.0


def test_the_peak_is_that_of_the_fastest_products():
    assert (LIMITS.bandwidth, LIMITS.fastest, LIMITS.peak) == (20.0, Limit.INT16, 200.0)
    slow_pairs = Limits({Limit.READ: 900.0, Limit.FP32: 100.0, Limit.BF16: 50.0})
    assert (slow_pairs.fastest, slow_pairs.peak) == (Limit.FP32, 100.0)


def test_int8_has_a_peak_of_its_own():
    limits = Limits({Limit.READ: 20.0, Limit.INT16: 200.0, Limit.INT8: 400.0})
    assert (limits.fastest, limits.peak) == (Limit.INT16, 200.0)
    run = replace(linear(SHAPE, 4), limits=limits)
    taken = replace(run.row(Kernel.W4), kernel=Kernel.W4_INT8)
    assert run.speed(taken).of_peak == pytest.approx(200 / 400)
    prompts = replace(MODEL, limits=limits)
    fused, int8 = (replace(MODEL.rows[0], way=Way(engine, "w4")) for engine in (Engine.FUSED, Engine.INT8))
    assert prompts.prefill(int8).of_peak == pytest.approx(prompts.prefill(fused).of_peak / 2)
    assert prompts.decode(int8).of_peak == pytest.approx(prompts.decode(fused).of_peak / 2)
    without = replace(prompts, limits=Limits({Limit.READ: 20.0, Limit.INT16: 200.0}))
    assert without.prefill(int8).of_peak == without.prefill(fused).of_peak


def test_the_speed_of_a_linear_layer():
    run = linear(SHAPE, 4)
    speed = run.speed(run.row(Kernel.W4))
    # 280,000 bytes and 2 x 4 x 1000 x 500 operations in 20 us
    assert speed.gb_s == pytest.approx(14.0) and speed.gflop_s == pytest.approx(200.0)
    assert speed.of_read == pytest.approx(14 / 20) and speed.of_peak == pytest.approx(1.0)
    assert run.row(Kernel.ORT_INT8) is None


def test_the_speed_of_writing():
    fused, llama = MODEL.rows
    speed = MODEL.decode(fused)
    # the weights' 60 MB and (8 + 4 / 2) positions of 1 MB, in 5 ms; twice 100 million products
    assert speed.gb_s == pytest.approx(70e6 / 0.005 / 1e9) and speed.gflop_s == pytest.approx(2e8 / 0.005 / 1e9)
    assert speed.of_read == pytest.approx(14 / 20) and speed.of_peak == pytest.approx(40 / 200)
    assert MODEL.decode(llama).gb_s == pytest.approx(80e6 / 0.0175 / 1e9)
    assert MODEL.rival() is llama and replace(MODEL, rows=(fused,)).rival() is None


def test_the_speed_of_reading_a_prompt():
    speed = MODEL.prefill(MODEL.rows[0])
    # 8 x 90 million products and the head's 10 million for the last token; half of 8 positions
    assert speed.gflop_s == pytest.approx(2 * 730e6 / 0.02 / 1e9) and speed.gb_s == pytest.approx(64e6 / 0.02 / 1e9)


def test_a_start():
    assert start().load_gb_s == pytest.approx(0.2)  # 50 MB in 0.25 s
    assert start().peak_over_needed == pytest.approx(1.5)  # 150 of 80 + 20


def test_the_sweep_is_of_the_shape_at_the_most_m_and_of_two_at_one_m_the_last():
    again = linear(SHAPE, 1, micros=7.0)
    found = report(linear(SHAPE, 8), linear(OTHER, 1), linear(SHAPE, 1), linear(OTHER, 1, FASTER), again).sweep()
    assert [run.m for run in found] == [1, 8] and found[0] is again
    assert report().sweep() == []


def test_a_report_is_read_as_it_was_written(tmp_path):
    WHOLE.write(tmp_path / "cpu.json")
    assert Report.read(tmp_path / "cpu.json") == WHOLE


OLD = {"machine": {"processor": "x"}, "rows": [{"what": "decode 7b"}], "starts": []}


@pytest.mark.parametrize(
    "text, message",
    [
        (json.dumps(OLD), "is a report of layout 1, this version reads layout 2; measure again"),
        (json.dumps(OLD | {"layout": 3}), "is a report of layout 3, this version reads layout 2; measure again"),
        ("[1, 2]", "is no report of this benchmark"),
        ('{"rows": []}', "is no report of this benchmark"),
        ("{", "is no report of this benchmark: Expecting property name .*"),
        (json.dumps(OLD | {"layout": 2}), "is no report of this benchmark: Report has other fields: .*"),
    ],
)
def test_what_is_no_such_report_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "cpu.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{file} {message}$") as refusal:
        Report.read(file)
    assert "\n" not in str(refusal.value)
