"""What the benchmark of speculation counts, on a tiny model."""

import pytest

from benchmarks.speculation import pairs as measured
from benchmarks.speculation.pairs import Row, costs_table, pairs, pairs_table, pass_costs
from benchmarks.speculation.texts import FREE, REPEATING, Ask
from engine.drafting import Drafted
from qlinear.backends.cpu import native
from run_awq import load
from tests.quantized import quantized, save_float

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

ASKS = (Ask("greedy", "w5 w9 w5 w9 w5"), Ask("drawn", "w7 w8", 0.8))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speculation")
    return quantized(save_float(folder / "tiny", max_position_embeddings=512), folder / "w4")


def test_pairs_of_answers(checkpoint):
    model = load(checkpoint, draft="lookup")
    rows = pairs(model, ASKS, 30, 2, 0.9)
    assert [row.name for row in rows] == ["greedy", "drawn"]
    for row in rows:
        assert 2 <= row.tokens <= 30 and row.bar == 0.9
        assert [len(one) for one in (row.plain, row.drafted, row.ratios, row.cpu_ratios)] == [2] * 4
        for plain, drafted, ratio in zip(row.plain, row.drafted, row.ratios, strict=True):
            assert ratio == pytest.approx(drafted / plain)
        # of both answers together, all but the prompt's token
        assert row.draft.tokens_per_pass * row.draft.passes == pytest.approx(2 * (row.tokens - 1))


def test_tokens_that_differ_end_it(checkpoint, monkeypatch):
    real, calls = measured._answer, []

    def one_more(*arguments):
        calls.append(1)
        found = real(*arguments)
        return found if len(calls) < 4 else measured._Answer([*found.tokens, 3], 1.0, 1.0, None)

    monkeypatch.setattr(measured, "_answer", one_more)
    with pytest.raises(AssertionError, match="^greedy: the tokens are not those without proposals$"):
        pairs(load(checkpoint, draft="lookup"), ASKS, 10, 2, 0.9)


def test_costs_are_in_passes_over_one_row(checkpoint):
    costs = pass_costs(load(checkpoint).decoder(300), 4, 5)
    assert len(costs) == 4 and costs[0] == (1, 1) and all(cost > 0 for pair in costs for cost in pair)
    assert costs_table([(1.0, 1.0), (1.256, 1.5)], "t").rows == [["time", "1.00", "1.26"], ["CPU time", "1.00", "1.50"]]


def test_the_table_shows_middle_ones():
    row = Row("one", 9, [10.0, 20.0, 90.0], [40.0, 50.0, 60.0], [4, 2.5, 0.7], [3, 2, 1], Drafted(9, 7, 8, 2.25), 2.0)
    assert pairs_table([row], "t").rows == [["one", "9", "20.0", "50.0", "2.50", "2.00", "7 of 9", "2.25", "2.0"]]


def test_the_texts():
    assert len(REPEATING) >= 4 and len({ask.prompt for ask in (*REPEATING, *FREE)}) == len(REPEATING) + len(FREE) / 2
    assert {ask.temperature for ask in REPEATING} == {None} and {ask.temperature for ask in FREE} == {None, 1.0}
