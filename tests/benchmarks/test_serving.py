"""What the benchmarks of serving count, and the soak itself for some seconds."""

from functools import partial

import pytest

from benchmarks.serving.server import serving, serving_llama_cpp
from benchmarks.serving.soak import soak
from benchmarks.serving.soak import table as soak_table
from benchmarks.serving.throughput import (
    Row,
    batch_times,
    llama_cpp_step_rates,
    measure,
    rate,
    step_rates,
    table,
)  # fmt: skip
from engine.batching import Batch
from qlinear.backends.cpu import native
from run_awq import load
from tests.quantized import quantized, save_float

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    made = quantized(save_float(folder / "tiny", max_position_embeddings=1024), folder / "w4")
    (made / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}")
    return made


def test_a_rate_is_of_the_time_in_which_all_are_written():
    first, second = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 3.0, 3.5, 9.0]
    assert rate([first]) == 1
    assert rate([first, second]) == (2 + 3) / 2


def test_rounds_take_turns_and_compare_within_themselves():
    calls = []

    def run(way, count, number):
        calls.append((way, count, number))
        return [[0.0, (1 + way) * number / count] for _ in range(count)]

    ways = {"made up": partial(run, 0), "other": partial(run, 1)}
    one, four, *others = measure(ways, (1, 4), 2)
    turns = [(1, 1), (4, 1), (1, 2), (4, 2)]
    assert calls == [(0, 4, 0), (1, 4, 0), *((way, *turn) for turn in turns for way in (0, 1))]
    assert [row.rates for row in others] == [[0.5, 0.25], [8, 4]]
    assert [row.how for row in (one, four, *others)] == ["made up"] * 2 + ["other"] * 2
    assert (one.rates, one.ratios) == ([1, 0.5], [1, 1])
    assert (four.rates, four.ratios) == ([16, 8], [16, 16])
    shown = table([one, four, Row("made up", 4, [3], [2.6])], "title")
    assert [row[1:] for row in shown.rows[1:]] == [
        ["4", "12.0", "16.00", "16.00 to 16.00", "2.5"], ["4", "3.0", "2.60", "2.60 to 2.60", "2.5"]
    ]  # fmt: skip


def test_says_so_when_the_other_server_does_not_begin():
    with pytest.raises(RuntimeError, match="did not begin"), serving_llama_cpp("false", "none.gguf", 1, 128, 1):
        pass


def test_tokens_are_counted_in_a_batch(checkpoint):
    batch = Batch(load(checkpoint).slots(200, 3), 3)
    times = batch_times(batch, 3, 40, seed=1)
    batch.close()
    assert [len(one) for one in times] == [40] * 3 and all(one == sorted(one) for one in times)


def test_steps_are_timed(checkpoint):
    one, three = step_rates(load(checkpoint).slots(128, 3), (1, 3), 2)
    assert (one.streams, three.streams, one.ratios) == (1, 3, [1, 1]) and len(three.rates) == 2
    assert three.ratios == [a / b for a, b in zip(three.rates, one.rates, strict=True)] and min(three.rates) > 0


def test_llama_cpps_steps_come_from_a_python_of_its_own(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2 $3 $4" = "a.gguf 1,4 2" ] && echo \'{"1": [2.0, 3.0], "4": [6.0, 6.0]}\'\n')
    python.chmod(0o700)
    one, four = llama_cpp_step_rates(str(python), "a.gguf", (1, 4), 2)
    assert (one.rates, four.rates, four.ratios) == ([2, 3], [6, 6], [3, 2]) and one.how == "llama.cpp, CPU time"


def test_some_seconds_of_clients_that_mean_no_good(checkpoint):
    with serving(checkpoint, "--slots", 2) as server:
        tally = soak(server, minutes=0.08, seed=1)
    assert tally.wrong == [] and sum(tally.kinds.values()) > 8 and len(tally.resident) > 1
    assert soak_table(tally).rows[-5] == ["wrong", "0"]
