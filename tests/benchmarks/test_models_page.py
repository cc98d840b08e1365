"""docs/models.md: what a row and the totals say."""

from benchmarks.models.page import HEADINGS, markdown, row, stays
from benchmarks.models.record import Blocks, Check, Left, Outcome, Record, Report, Way

EXACT = (Check.of("a", True, [1e-7, 3e-6], 0.0), Check.of("b", True, [2e-5, 0.0], 0.0))
ROUNDED = (Check.of("c", False, [0.01, 0.012, 0.5], 0.011), Check.of("d", False, [0.004], 0.02))
RUN = Way(
    "run", checks=EXACT + ROUNDED, fused=True, kept=(Left("a.*", "a router"), Left("b", "a router"), Left("c", "odd")),
    kept_share=0.031, blocks=(Blocks(3, "table", 4, ()), Blocks(1, "discovered", 2, ()), Blocks(1, "table", 1, ())),
)  # fmt: skip
NONE = Way("none", checks=EXACT + ROUNDED)


def test_a_row_that_works():
    assert row(Record("qwen3", ways=(RUN, NONE))) == [
        "`qwen3`", "works, fused", "table (4), discovered (1)", "the fused decoder", "3%: a router, odd", "2e-05",
        "0.012 (0.011)",
    ]  # fmt: skip


def test_a_row_by_rounding_alone_shows_no_edges():
    refused = Way("run", Outcome.REFUSED, "blocks | share <x>", "quantize")
    assert row(Record("zamba", ways=(refused, NONE))) == [
        "`zamba`", r"rounding only: blocks \| share \<x>", "", "its modules", "", "2e-05", "0.012 (0.011)",
    ]  # fmt: skip


def test_a_row_that_does_not_run():
    found = row(Record("rwkv", ways=(Way("none", Outcome.REFUSED, "no", "decode: engine/modules.py:60"),)))
    assert found == ["`rwkv`", "refused: no", *[""] * 5] and len(found) == len(HEADINGS)


def test_a_small_share_is_not_none():
    assert stays(Way("run", kept=(Left("a", "a router"),), kept_share=0.004)) == r"\<1%: a router"
    assert stays(Way("run", kept=(Left("a", "a router"),), kept_share=0.006)) == "1%: a router"


def test_the_page_has_a_table_each_for_types_variants_and_wrappers():
    records = tuple(Record(name, ways=(RUN,)) for name in ("llama", "falcon:alibi", "llava:wrapper"))
    page = markdown(Report({"torch": "2"}, 1.0, (*records, Record("musicgen", unbuilt="a decoder"))))
    assert page.startswith("torch 2; 2 types: 1 works, fused, 1 no model.\n\n**Types**\n\n| type |")
    titles = [line for line in page.splitlines() if line.startswith("**")]
    assert titles == ["**Types**", "**Variants**", "**Models with a tower for pictures**"]
    assert page.count("\n| `") == 4 and page.index("`falcon:alibi`") > page.index("**Variants**")
