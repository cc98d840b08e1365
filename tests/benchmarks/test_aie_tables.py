"""The cells of the tables against arithmetic written out here."""

import pytest

from benchmarks.aie import tables
from benchmarks.aie.models import LLAMA_3

# Bytes that a token of Llama-2-7B moves on phx, q/k/v grouped: weights, activations with parameters, float32 results.
WEIGHTS = 32 * 8512 * (3 * 33 * 96 + 33 * 32 + 87 * 32)
ACTIVATIONS = 32 * (4 * (4096 * 2 + 2048) + 11008 * 2 + 2048)
RESULTS = 32 * 4 * (3 * 12288 + 2 * 4096)
GROUPED = WEIGHTS + ACTIVATIONS + RESULTS


def _cells(table):
    """The rows of a markdown table by their heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_columns_of_numbers_are_aligned_right():
    rows = [
        {"name": "a", "ms": "1.5", "of": "3 %", "range": "1-2"},
        {"name": "b", "ms": "20", "of": "4%", "range": "-"},
    ]
    assert tables.markdown(rows) == (
        "| name | ms | of | range |\n| --- | ---: | --- | ---: |\n| a | 1.5 | 3 % | 1-2 |\n| b | 20 | 4% | - |"
    )


def test_a_token():
    rows = _cells(tables.token_table())
    assert len(rows) == 3 * 2 * 3
    row = next(r for r in rows if (r["model"], r["device"], r["grouped"]) == ("Llama-2-7B", "phx", "q/k/v"))
    transfer, overhead = GROUPED / 37e9 * 1e3, 160 * 0.4
    padded = 32 * 4096 * (3 * 12288 + 4096 + 11008)
    assert row == {
        "model": "Llama-2-7B",
        "device": "phx",
        "grouped": "q/k/v",
        "dispatches": "160",
        "GB moved": f"{GROUPED / 1e9:.2f}",
        "useful MACs": f"{100 * 4096 * (4 * 4096 + 3 * 11008) * 32 / padded:.1f}%",
        "transfer ms": f"{transfer:.1f}",
        "compute ms": f"{padded / (16 * 128 * 1e9 * 0.757) * 1e3:.1f}",
        "overhead ms": f"{overhead:.1f}",
        "modelled ms": f"{transfer + overhead:.1f}",
    }


def test_a_prompt():
    rows = _cells(tables.prompt_table())
    row = next(r for r in rows if (r["model"], r["device"], r["grouped"]) == ("Llama-2-7B", "phx", "q/k/v"))
    # 8 dispatches of 32 rows each, which pass the weight 4 times; activations of 32 rows, parameters once a dispatch
    moved = 8 * (4 * WEIGHTS + 32 * (32 * 2 * (4 * 4096 + 11008) + 5 * 2048) + 32 * RESULTS)
    assert (row["dispatches"], row["GB moved"]) == (str(8 * 160), f"{moved / 1e9:.1f}")
    # the bytes take longer than the products in every kernel, so they alone make the time
    assert row["modelled s"] == f"{moved / 37e9 + 8 * 160 * 0.4e-3:.2f}"


def test_the_lm_head():
    rows = _cells(tables.lm_head_table())
    row = next(r for r in rows if (r["model"], r["device"]) == ("Llama-3-8B", "phx"))
    # 128256 columns are four blocks of 32768; a block has 1 + 4096 / 32 rows of 256 sub-volumes of 2368 bytes.
    moved = 4 * (129 * 256 * 2368 + 4096 * 2 + 2048 + 32768 * 4)
    assert row["lm_head, K x N"] == "4096 x 128256" and row["kernel"] == "4096 x 32768"
    assert (row["dispatches"], row["MB moved"]) == ("4", f"{moved / 1e6:.1f}")
    assert row["useful MACs"] == f"{100 * 128256 / (4 * 32768):.1f}%"
    assert row["modelled ms"] == f"{moved / 37e9 * 1e3 + 4 * 0.4:.2f}"


def test_a_layer_matmul_by_matmul():
    rows = _cells(tables.layer_table(LLAMA_3))
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "q/k/v", "gate/up"]
    assert [(row["device"], row["matmul"]) for row in rows] == [(d, name) for d in ("phx", "stx") for name in names]
    down = next(row for row in rows if row["matmul"] == "down_proj")
    moved = 2 * (87 * 32 * 8512 + 11008 * 2 + 2048 + 4096 * 4)
    assert (down["K x N"], down["kernel"], down["dispatches"]) == ("14336 x 4096", "11008 x 4096", "2")
    assert (down["MB moved"], down["useful MACs"]) == (f"{moved / 1e6:.1f}", f"{100 * 14336 / 22016:.1f}%")
    assert down["modelled ms"] == f"{moved / 37e9 * 1e3 + 2 * 0.4:.2f}"


@pytest.mark.parametrize(
    "row, bandwidth, overhead", [(0, 37e9, 0.4e-3), (1, 32e9, 0.4e-3), (2, 42e9, 0.4e-3), (3, 37e9, 0.045e-3)]
)
def test_what_is_left_for_the_host_of_the_published_time(row, bandwidth, overhead):
    cells = _cells(tables.published_table())[row]
    ms = (GROUPED / bandwidth + 160 * overhead) * 1e3
    assert cells["modelled ms, q/k/v grouped"] == f"{ms:.0f}"
    assert cells["tokens/s at most"] == f"{1000 / ms:.1f}"
    # reported: 4 tokens/s at best, 250 ms, and 2.5 at worst, 400 ms
    assert cells["ms left for the host"] == f"{250 - ms:.0f}-{400 - ms:.0f}"


def test_every_figure_has_its_unit_and_source():
    rows = _cells(tables.figures_table())
    assert len(rows) == 2 * 7 and all(row["unit"] and row["source"] for row in rows)
    assert (rows[0]["figure"], rows[0]["device"], rows[0]["value"]) == ("`cores`", "phx", "16")
