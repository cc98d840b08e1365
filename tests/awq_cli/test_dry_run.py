"""`--dry_run` from the command line: what it shows, and what means nothing beside it."""

import json
from dataclasses import replace

import pytest
from transformers import AutoConfig

from quantization import forecast
from tests.quantization.test_forecast import RATES


def test_it_is_shown_within_60_columns(run, monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda *_: RATES)
    config = dict(tie_word_embeddings=False, hidden_size=8192, intermediate_size=28672, num_attention_heads=64)
    config |= dict(num_key_value_heads=8, num_hidden_layers=80)
    AutoConfig.for_model("llama", architectures=["LlamaForCausalLM"], **config).save_pretrained(run.folder / "seventy")
    before = run.left()
    narrow = replace(run, columns=60)
    asked = ("--task", "quantize", "--model_name", "seventy", "--dry_run")
    shown = narrow(*asked)
    assert shown.code == 0 and run.left() == before
    table = [line for line in shown.out.splitlines() if "_proj" in line or line.startswith("layer")]
    assert len(table) == 8 and all(len(line) <= 60 for line in table)
    down = next(line.split() for line in table if "down_proj" in line)
    assert down == ["mlp.down_proj", "80", "8192", "x", "28672", "4.16", f"{80 * 8192 * 28672 * 4.15625 / 8e6:,.1f}"]
    assert "lm_head (the output head; --lm_head quantizes it)" in shown.out
    assert "vLLM serves it with --tensor-parallel-size 1, 2, 4, 8 or 16" in shown.out
    eight = narrow(*asked, "--tensor_parallel", 3, "--json", "told.json")
    assert "it cannot be served over 3 shards by vLLM" in eight.out and "64 heads are not a multiple of 3" in eight.out
    written = json.loads((run.folder / "told.json").read_text())
    assert written["task"] == "dry_run" and written["asked_shards"] == 3 and written["misfits"][0]["served"] is False


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--dry_run", "--resume"), "--resume means nothing with --dry_run; leave it out"),
        (("--dry_run", "--overwrite"), "--overwrite means nothing with --dry_run; leave it out"),
        (("--tensor_parallel", "2"), "--tensor_parallel means nothing without --dry_run; leave it out"),
    ],
)
def test_what_means_nothing_beside_it(run, model, more, words):
    assert run("--task", "quantize", "--model_name", model, *more).error == words
