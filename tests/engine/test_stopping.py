"""Texts that end an answer, against a reader that sees it a character at a time."""

import random

import pytest

from engine.stopping import StopTexts
from qlinear.errors import OptionError


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """What is before the stop text that is complete first, the longer of two; and whether there is one."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def shown(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """What comes out after each piece, all of it so far, and in the end."""
    stop, out, after = StopTexts(stops), "", []
    for piece in pieces:
        out += stop.add(piece)
        after.append(out)
    after.append(out + stop.end())
    return after, stop.found


@pytest.mark.parametrize("seed", range(200))
def test_any_cut_of_an_answer_gives_the_same(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices("ab\n", k=draw.randint(0, 30)))
    stops = ["".join(draw.choices("ab\n", k=draw.randint(1, 5))) for _ in range(draw.randint(0, 3))]
    expected = reference(text, stops)
    for _ in range(10):
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 10)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        after, found = shown(pieces, stops)
        assert (after[-1], found) == expected
        assert all(expected[0].startswith(out) for out in after)  # nothing too early that would have to be taken back


def test_what_may_begin_a_stop_text_is_held_back_and_no_more():
    pieces = ["one ", "E", "N", "d EN", "D", " two"]
    assert shown(pieces, ["END"]) == (["one ", "one ", "one ", "one ENd ", "one ENd ", "one ENd ", "one ENd "], True)
    assert shown(["one E", "N"], ["END"]) == (["one ", "one ", "one EN"], False)
    assert shown(["aab"], ["ab", "aabb"]) == (["a", "a"], True)


def test_an_empty_one_is_refused():
    with pytest.raises(OptionError, match="^`stop` '' is empty; give some text$"):
        StopTexts(["a", ""])
