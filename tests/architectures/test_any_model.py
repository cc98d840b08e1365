"""Models of every kind, tiny and random: quantized, run and compared with transformers, or refused in one line.

The whole table, one row a type of causal language model, is made by `python -m benchmarks.models`.
"""

import re
from pathlib import Path

import pytest

from benchmarks.models.record import Outcome, Way
from benchmarks.models.steps import examine
from benchmarks.models.table import why
from benchmarks.models.tiny import Row

# With AWQ, the whole stack at once; with AWQ, on modules; by rounding alone.
FUSED = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")
SCALED = ("bloom", "falcon", "gemma3:wrapper", "gpt_neox", "opt", "starcoder2")
ROUNDED = (
    "apertus", "bamba", "bert", "codegen", "cohere2", "dbrx", "glm4", "gpt_bigcode", "gpt_oss", "lfm2", "mamba2",
    "minicpm3", "mpt", "nemotron", "olmo2", "qwen3_5_text", "recurrent_gemma", "stablelm", "zaya",
)  # fmt: skip
# Not yet, and said in one line.
REFUSED = ("deepseek_v3", "gpt2", "jamba", "llava:wrapper", "nemotron_h", "qwen3_moe", "qwen3_next")


def way(name: str, folder: Path, awq: str) -> Way:
    record = examine(Row.named(name), folder, (awq,))
    assert record.unbuilt is None
    (found,) = record.ways
    assert found.outcome in (Outcome.WORKS, Outcome.REFUSED), (why(found), found.wrong_checks())
    assert found.strange == () and not any("loaded again" in note for note in found.notes)
    return found


@pytest.mark.parametrize("name", [*FUSED, *SCALED])
def test_awq_scales_it_and_it_computes_what_transformers_computes(name, tmp_path):
    found = way(name, tmp_path, "run")
    assert found.outcome is Outcome.WORKS, why(found)
    assert len(found.checks) == 7 and found.fused == (name in FUSED)
    assert [matrix for matrix in found.left_float if re.search(r"\.\d+\.", matrix) and "vision" not in matrix] == []
    assert not any("vision" in linear for linear in found.quantized)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_it_computes_what_transformers_computes(name, tmp_path):
    found = way(name, tmp_path, "none")
    assert found.outcome is Outcome.WORKS, why(found)
    assert len(found.checks) == 7 and found.quantized


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name, tmp_path):
    assert way(name, tmp_path, "none").outcome is Outcome.REFUSED
