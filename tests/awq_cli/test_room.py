"""Each prompt has room for an answer of its own, however long others are."""

import pytest

from engine.model import Model
from qlinear.backends.cpu import native
from tests.awq_cli.conftest import CONTEXT


def decode(run, rounded, *options):
    return run.result("--task", "decode", "--checkpoint", rounded, *options)["responses"]


@pytest.mark.parametrize("how", [(), ("--no_flash_attention",), ("--draft", "lookup")])
def test_a_short_prompt_beside_a_long_one_is_answered_as_alone(run, rounded, how):
    if "--draft" in how and not native.is_built():
        pytest.skip("the native kernels are not built")
    long = "the value of this " * ((CONTEXT - 20) // 4)
    alone = [decode(run, rounded, "--prompt", prompt, *how)[0] for prompt in ("a class", long)]
    together = decode(run, rounded, "--prompt", "a class", "--prompt", long, *how)
    for one, other in zip(alone, together, strict=True):
        assert (one["response"], one["ended"]) == (other["response"], other["ended"])
    assert together[0]["new_tokens"] == 256 and together[0]["ended"] == "length"
    assert together[1]["new_tokens"] < 20 and together[1]["ended"] == "context"


@pytest.mark.parametrize("how", [(), ("--no_flash_attention",)])
def test_one_prompt_takes_one_decoder(run, rounded, how, monkeypatch):
    made, make = [], Model.decoder
    monkeypatch.setattr(Model, "decoder", lambda *given, **more: made.append(1) or make(*given, **more))
    decode(run, rounded, "--prompt", "a class", "--max_new_tokens", 2, *how)
    assert made == [1]


def test_a_prompt_that_leaves_no_room_is_refused(run, rounded):
    long = "the value of this " * (CONTEXT // 4 + 1)
    outcome = run("--task", "decode", "--checkpoint", rounded, "--prompt", "a class", "--prompt", long)
    assert "more than the model's context" in outcome.error
    asked = run("--task", "decode", "--checkpoint", rounded, "--prompt", "a class", "--max_new_tokens", CONTEXT)
    assert f"and --max_new_tokens {CONTEXT} need" in asked.error
