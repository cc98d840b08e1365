"""Activations rounded to int8 from the command line: named in every result, refused where there are none."""

import pytest

from qlinear.backends.cpu import native


@pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")
def test_activations_rounded_to_int8_are_named_in_every_result(run, rounded, text_file):
    which, name = ("--checkpoint", rounded, "--precision", "w4aint8"), f"cpu/{native.select_isa()} int8"
    scoring = ("--task", "perplexity", "--dataset", text_file, "--window", 300, "--n_windows", 2)
    scored, exact = run.result(*scoring, *which), run.result(*scoring, "--checkpoint", rounded)
    assert scored["perplexity"] != exact["perplexity"]
    assert scored["perplexity"] == pytest.approx(exact["perplexity"], rel=0.03)
    timing = ("--task", "benchmark", "--max_new_tokens", 2)
    for result in (
        scored,
        run.result(*timing, *which),
        run.result("--task", "decode", "--prompt", "the value", *which),
    ):
        assert (result["precision"], result["backend"]) == ("w4aint8", name)
    assert f" on {name}" in run(*timing, *which).out


@pytest.mark.parametrize("target", ["aie_emu", "cuda"])
def test_activations_are_rounded_to_int8_on_the_cpu_only(run, rounded, target):
    outcome = run("--task", "decode", "--checkpoint", rounded, "--precision", "w4aint8", "--target", target)
    assert outcome.error == f"--precision w4aint8 runs on --target cpu only, not on {target}; use w4abf16"
