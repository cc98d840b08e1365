"""The NPU targets from the command line: what is emulated, what is modelled, and that neither passes for the other."""

import csv
from time import perf_counter

import pytest

from checkpoints.quantized import open_quantized
from qlinear.backends.registry import Npu, open_target
from qlinear.errors import TargetError

BLOCKS, LINEARS, GROUPED = 2, 7, 5  # of the tiny llama: blocks, linears in each, matmuls in each with q/k/v as one
# On phx a 64-group weight runs as groups of 32, in a 4096 x 4096 block: 1 + 4096 / 32 rows of 4096 / 128 sub-volumes.
WEIGHT_BYTES = (1 + 128) * 32 * 2368
ACTIVATION_BYTES = 4096 * 2 + 2048  # a row of bfloat16, and the area of the parameter words
RESULT_BYTES = 4096 * 4
# A model of the array in which nothing but dispatches takes time, and each of them longer than any test.
DISPATCH_S = 1000
SLOW = [
    argument
    for figure in ("read_bandwidth=1e30", "write_bandwidth=1e30", "clock_hz=1e30", f"dispatch_overhead={DISPATCH_S}")
    for argument in ("--latency", figure)
]


@pytest.mark.parametrize(("flag", "matmuls"), [(("--no_flash_attention",), LINEARS), ((), GROUPED)])
def test_a_benchmark_keeps_modelled_and_measured_time_apart(run, rounded, flag, matmuls):
    target = ("--task", "benchmark", "--checkpoint", rounded, "--target", "aie", "--max_new_tokens", 2)
    started = perf_counter()
    result = run.result(*target, *SLOW, *flag, "--csv", "rows.csv")
    lasted_ms = (perf_counter() - started) * 1e3
    assert result["backend"] == "aie_emu/phx (emulated)"
    assert "pyxrt module; every matmul is emulated" in result["notes"][0]
    assert result["latency_model"]["dispatch_overhead"]["value"] == DISPATCH_S
    assert result["latency_model"]["dispatch_overhead"]["source"] == "set by the user"
    dispatches = BLOCKS * matmuls
    for row in result["rows"]:
        modelled = row["modelled"]
        # phx has kernels for 1, 8 and 32 rows: prompts of up to 32 tokens are one dispatch a matmul.
        per_matmul = max(1, row["prompt_tokens"] // 32)
        assert modelled["dispatches_per_token"] == dispatches
        assert modelled["dispatches_per_prompt"] == dispatches * per_matmul
        assert modelled["ms_per_token"] == pytest.approx(dispatches * DISPATCH_S * 1e3)
        assert modelled["ttft_ms"] == pytest.approx(dispatches * DISPATCH_S * 1e3 * per_matmul)
        assert modelled["bytes_per_token"] == dispatches * (WEIGHT_BYTES + ACTIVATION_BYTES + RESULT_BYTES)
        # What was measured has none of that in it: it fits in the time the whole command took.
        assert 0 < row["ttft_ms"] + row["ms_per_token"] < lasted_ms
        assert row["prefill_tok_s"] == pytest.approx(row["prompt_tokens"] / row["ttft_ms"] * 1e3)
    rows = list(csv.DictReader((run.folder / "rows.csv").open()))
    modelled_ms = [float(row["modelled_ms_per_token"]) for row in rows]
    assert modelled_ms == pytest.approx([dispatches * DISPATCH_S * 1e3] * len(rows))


def test_what_is_shown_says_emulated_and_modelled(run, rounded):
    outcome = run("--task", "benchmark", "--checkpoint", rounded, "--target", "aie", "--max_new_tokens", 2)
    measured, _, modelled = outcome.out.partition("modelled, not measured")
    assert "aie_emu/phx (emulated)" in measured
    assert "times below are those of the emulation on this machine's CPU, not of an NPU" in measured
    assert "dispatch_overhead = 0.0004 s" in modelled
    assert [note for note in outcome.notes if "every matmul is emulated" in note]


def test_a_cpu_benchmark_has_nothing_modelled(run, rounded):
    result = run.result("--task", "benchmark", "--checkpoint", rounded, "--max_new_tokens", 2)
    assert result["latency_model"] is None
    assert {row["modelled"] for row in result["rows"]} == {None}


def test_the_emulation_scores_a_text_as_the_cpu_does(run, rounded, text_file):
    text = ("--task", "perplexity", "--checkpoint", rounded, "--dataset", text_file, "--window", 256, "--n_windows", 2)
    emulated = {
        device: run.result(*text, "--target", "aie_emu", "--device", device)["perplexity"] for device in ("phx", "stx")
    }
    cpu = run.result(*text)["perplexity"]
    assert emulated["phx"] == pytest.approx(cpu, rel=5e-3)
    assert emulated["stx"] == pytest.approx(cpu, rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "aie", "--device", "xdna3"), "Invalid value for '--device': 'xdna3' is not one of 'phx', 'stx'."),
        (("--device", "stx"), "--device means nothing without --target aie; leave it out"),
        (("--latency", "cores=1"), "--latency means nothing without --target aie; leave it out"),
        (("--target", "aie", "--latency", "cores"), "--latency cores: has to be NAME=VALUE with a number"),
        (
            ("--target", "aie", "--latency", "speed=9"),
            "the latency model has no parameter 'speed'; it has cores, macs_per_clock, clock_hz, efficiency, "
            "read_bandwidth, write_bandwidth, dispatch_overhead",
        ),
        (
            ("--target", "aie", "--latency", "cores=nan"),
            "latency parameter cores is nan; it has to be positive and finite",
        ),
    ],
)
def test_mistakes(run, rounded, arguments, message):
    assert run("--task", "decode", "--checkpoint", rounded, *arguments).error == message


def test_a_layer_prints_its_tiling(rounded):
    npu = open_quantized(rounded, open_target("aie_emu", Npu("stx")).backend)
    layer = npu.module.model.layers[0].mlp.down_proj
    assert str(layer.tiling(3)).startswith("stx (emulated): (3, 128) x (128, 64), 4-bit, group 64")
    cpu = open_quantized(rounded, open_target("cpu").backend)
    with pytest.raises(TargetError, match="runs a matmul as it is, uncut"):
        cpu.module.model.layers[0].mlp.down_proj.tiling(3)
