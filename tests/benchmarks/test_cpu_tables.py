"""The cells of the tables of docs/cpu.md, by hand."""

from benchmarks.cpu import tables
from benchmarks.table import Table
from tests.benchmarks.reports import FASTER, MODEL, OTHER, SHAPE, WHOLE, linear, report


def test_a_table_in_markdown():
    table = Table("title", ["name", "kind", "ms"], [["a", "b", "1"]], texts=2)
    assert table.markdown() == "| name | kind | ms |\n| --- | --- | ---: |\n| a | b | 1 |"
    assert [column.justify for column in table.rich().columns] == ["left", "left", "right"]


def test_the_limits_are_medians_and_ranges_over_all_runs():
    table = tables.limits_table(WHOLE)  # three runs and a model at 20 GB/s, one at 30
    assert table.rows == [
        ["read", "20.0 GB/s", "20.0 - 30.0"],
        ["fp32", "100.0 GFLOP/s", "100.0 - 120.0"],
        ["int16", "200.0 GFLOP/s", "160.0 - 200.0"],
    ]
    assert tables.limits_table(report(linear(SHAPE, 1), linear(SHAPE, 2, FASTER))).rows[0][1] == "25.0 GB/s"


def test_few_rows_are_counted_in_bytes():
    table = tables.shapes_table(WHOLE, 1)
    assert table.title == "M = 1: speed, and how many times faster than another"
    assert table.headings == [
        "N x K", "w4 GB/s", "of read", "w3 GB/s", "of read", "w4 matmul GB/s", "of read", "w3 over w4",
        "w4 over torch int4pack", "w4 over torch bf16",
    ]  # fmt: skip
    assert table.rows == [
        # 280 kB in 20 us, 220 kB in 10 us, 280 kB in 24 us, of 20 GB/s
        ["1000 x 500", "14", "0.70", "22", "1.10", "11.7", "0.58", "2.00x", "2.00x", "10.00x"],
        # four times that in 100, 50 and 120 us, of 30 GB/s
        ["2000 x 1000", "11.2", "0.37", "17.6", "0.59", "9.33", "0.31", "2.00x", "2.00x", "10.00x"],
    ]


def test_many_rows_are_counted_in_operations():
    (cells,) = tables.shapes_table(WHOLE, 128).rows
    # 2 x 128 x 1000 x 500 in 1000, 500 and 1200 us, of 200 GFLOP/s
    assert cells[:8] == ["1000 x 500", "128", "0.64", "256", "1.28", "107", "0.53", "2.00x"]
    assert tables.shapes_table(WHOLE, 128).headings[1:3] == ["w4 GFLOP/s", "of peak"]


def test_the_sweep_in_microseconds():
    table = tables.sweep_table(WHOLE)
    assert table.title == "Microseconds of one 1000 x 500 matmul on M rows"
    assert table.headings == ["M", "w4", "w3", "w4 matmul", "torch int4pack", "torch bf16"]
    assert table.rows == [["1", "20", "10", "24", "40", "200"], ["128", "1,000", "500", "1,200", "2,000", "10,000"]]
    assert tables.sweep_table(report(linear(SHAPE, 1), linear(OTHER, 1))).rows == []  # one M is no sweep


def test_whole_models():
    table = tables.models_table(WHOLE)
    assert table.title == "Whole models: a prompt of 8 tokens, then one token at a time"
    assert table.rows == [
        # 5 ms a token, 70 MB in them of 20 GB/s, against 17.5 ms; 8 tokens in 20 ms, 73 of 200 GFLOP/s, against 50 ms
        ["tiny", "fused w4", "200.0", "10%", "0.70", "3.50x", "400", "5%", "0.36", "2.50x"],
        # 80 MB in 17.5 ms; 1.46 GFLOP in 50 ms
        ["tiny", "llama.cpp Q4_0", "57.1", "20%", "0.23", "", "160", "1%", "0.15", ""],
    ]


def test_starts():
    first = tables.starts_table(WHOLE).rows[0]
    assert first == [
        "tiny", "fused w4", "1.50", "0.25", "0.20", "2.00", "80", "20", "390", "140", "150", "1.50",
    ]  # fmt: skip


def test_what_docs_get():
    page = tables.markdown(WHOLE)
    head, picture, title, *_ = page.split("\n\n")
    assert head == "A Processor, 2 threads, instruction set avx2; torch 2.0, llama.cpp 0.3."
    assert picture == tables.PICTURE and title == "**The machine's limits, over the whole run**"
    assert page.count("**M = ") == 2  # no table for 512, which was not measured
    without = tables.markdown(report(models=(MODEL,)))
    assert tables.PICTURE not in without and "M = 1" not in without and "**Whole models" in without


def test_the_page_has_the_markers():
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page.count(tables.BEGIN) == 1 and tables.END in page.partition(tables.BEGIN)[2]
