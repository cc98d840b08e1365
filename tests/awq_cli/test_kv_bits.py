"""A cache of int8 from the command line: named in every result with its bytes, refused where there is none."""

import pytest

from qlinear.backends.cpu import native

needs_kernels = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


@needs_kernels
def test_it_is_named_in_every_result(run, rounded, text_file):
    which, name = ("--checkpoint", rounded, "--kv_bits", 8), f"cpu/{native.select_isa()} kv8"
    scoring = ("--task", "perplexity", "--dataset", text_file, "--window", 300, "--n_windows", 2)
    scored, exact = run.result(*scoring, *which), run.result(*scoring, "--checkpoint", rounded)
    assert scored["perplexity"] != exact["perplexity"]
    assert scored["perplexity"] == pytest.approx(exact["perplexity"], rel=0.01)
    assert (exact["kv_bits"], scored["kv_bits"]) == (16, 8)
    assert scored["kv_bytes"] / exact["kv_bytes"] == 20 / 32  # of heads of 16 features, with their scale
    timing = ("--task", "benchmark", "--max_new_tokens", 2)
    for result in (
        scored,
        run.result(*timing, *which),
        run.result("--task", "decode", "--prompt", "the value", "--prompt", "of", *which),
        run.result("--task", "decode", "--prompt", "the value", "--draft", "lookup", *which),
    ):
        assert (result["kv_bits"], result["backend"]) == (8, name) and result["kv_bytes"] > 0
    assert f" on {name}" in run(*timing, *which).out


@pytest.mark.parametrize("target", ["aie_emu", "cuda"])
def test_it_is_of_the_cpu_only(run, rounded, target):
    outcome = run("--task", "decode", "--checkpoint", rounded, "--kv_bits", 8, "--target", target)
    assert outcome.error == f"--kv_bits 8 runs on --target cpu only, not on {target}; use 16"


def test_modules_keep_their_own(run, rounded):
    outcome = run("--task", "decode", "--checkpoint", rounded, "--kv_bits", 8, "--no_flash_attention")
    assert outcome.error == "--kv_bits 8 means nothing with --no_flash_attention; leave one of them out"
