"""Which paragraphs of the text that comes along are kept; and that the one that comes along is such a text."""

from benchmarks.recipes.builtin_text import OPENINGS, OUTPUT, kept


def test_paragraphs_are_left_out_whole():
    written = ["A recipe.\n\nThe President spoke.\n\n \n\nMore salt.", "See https://x.y\n\nThe end. "]
    assert kept(written) == "A recipe.\n\nMore salt.\n\nThe end.\n"


def test_what_comes_along_is_such_a_text():
    text = OUTPUT.read_text(encoding="utf-8")
    assert kept([text.removesuffix("\n")]) == text
    assert sum(text.count(opening) for opening in OPENINGS.splitlines()) > 50
