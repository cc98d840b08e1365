"""What int8 costs and is worth, as a page: on a tiny checkpoint, beside figures taken here."""

import pytest

from benchmarks import int8
from qlinear.backends.cpu import native
from run_awq import load
from tests.quantized import quantized, save_float
from tests.tiny import VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
WINDOW, COUNT = 40, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    source = save_float(folder / "float")
    text = folder / "text.txt"
    text.write_text(" ".join(f"w{i * 7 % (VOCAB - 3) + 3}" for i in range(WINDOW * COUNT + 5)))
    return source, quantized(source, folder / "made"), text


def rows_of(page):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]


def test_quality_is_that_of_the_models(made):
    source, checkpoint, text = made
    options = dict(
        part="activations",
        checkpoint=(str(checkpoint),),
        dataset=text,
        float_model=str(source),
        window=WINDOW,
        n_windows=COUNT,
    )
    page = int8.measured(options | dict(speed=(), prompt=1, new=1, rounds=1))
    assert f"Quality on {COUNT} windows of {WINDOW} tokens of text.txt." in page and "Speed" not in page
    headings, _, exact, rounded = rows_of(page)
    assert headings[:3] == ["checkpoint", "precision", "perplexity"] and len(headings) == len(exact) == 7
    for cells, precision in ((exact, "w4abf16"), (rounded, "w4aint8")):
        found = load(checkpoint, precision=precision).perplexity(text.read_text(), WINDOW, COUNT)
        assert cells[:3] == ["made", precision, f"{found:.3f}"]
        assert 1e-4 < float(cells[3]) < 0.5  # four bits differ from the float model
    assert exact[5:] == ["", ""] and 1e-6 < float(rounded[5]) < float(rounded[3])


def test_a_head_may_be_what_is_rounded(made):
    options = dict(part="head", checkpoint=(str(made[1]),), dataset=made[2], float_model=None, window=WINDOW)
    page = int8.measured(options | dict(n_windows=COUNT, speed=(str(made[1]),), prompt=4, new=2, rounds=1))
    quality, _, exact, rounded, speed, _, sixteen, eight = rows_of(page)
    assert quality[1:4] == ["head bits", "perplexity", "divergence from 16"] and speed[1] == "head bits"
    found = load(made[1], head_bits=8).perplexity(made[2].read_text(), WINDOW, COUNT)
    assert rounded[:3] == ["made", "8", f"{found:.3f}"] and 1e-7 < float(rounded[3]) < 0.01
    assert exact[:2] == sixteen[:2] == ["made", "16"] and eight[2] == f"cpu/{native.select_isa()} head8"


def test_speed_is_taken_in_turns(made, monkeypatch):
    taken = iter([9, 9, 9, 9, 4, 1, 2, 0.5, 4, 1, 2, 0.5])  # a round to warm up, then prompt and tokens of either way
    monkeypatch.setattr(int8, "timed", lambda work: (work(), (second := next(taken), second * 2))[1])
    exact, rounded = int8.speed_rows(int8.PARTS["activations"], str(made[1]), 8, 2, 2)
    backend = f"cpu/{native.select_isa()}"
    assert exact == ["made", "w4abf16", backend, "2", "", "2.0", ""]
    assert rounded == ["made", "w4aint8", f"{backend} int8", "4", "2.00x (2.00x)", "4.0", "2.00x (2.00x)"]
