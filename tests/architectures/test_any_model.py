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

# With AWQ, along edges of the table: the whole stack at once, or on modules; experts' edges are found.
FUSED = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "starcoder2")
FUSED_EXPERTS = ("qwen3_moe",)
MODULES = ("bloom", "falcon", "gemma3:wrapper", "gpt_neox", "llava:wrapper", "opt")
# With AWQ, along edges that were found.
DISCOVERED = (
    "apertus", "bert", "codegen", "cohere2", "glm4", "gpt2", "gpt_bigcode", "minicpm3", "mpt", "nemotron", "olmo2",
    "stablelm",
)  # fmt: skip
# Of those, the ones that run as a whole stack.
FUSED_DISCOVERED = ("apertus", "cohere2", "glm4", "nemotron", "olmo2", "stablelm")
# With AWQ, and not all of their matrices are linears: convolutions, recurrences, routers.
MIXED = (
    "bamba", "dbrx", "deepseek_v3", "gpt_oss", "jamba", "lfm2", "mamba2", "nemotron_h", "qwen3_5_text", "qwen3_next",
    "recurrent_gemma",
)  # fmt: skip
# By rounding alone: what their blocks hand each other, or share, cannot be scaled one by one.
ROUNDED = ("mllama", "mllama:wrapper", "zamba", "zaya")
REFUSED = {
    "cpmant": "cpmant models look at later tokens too, so that they write no text from left to right, and are not run",
    "rwkv": "float cannot be quantized: it reads its layers' weights itself",
    "xlm": "XLMWithLMHeadModel predicts one token a call only, and is not run here",
}


def way(name: str, folder: Path, awq: str) -> Way:
    record = examine(Row.named(name), folder, (awq,))
    assert record.unbuilt is None
    (found,) = record.ways
    assert found.outcome in (Outcome.WORKS, Outcome.REFUSED), (why(found), found.wrong_checks())
    assert found.strange == () and not any("loaded again" in note for note in found.notes)
    return found


@pytest.mark.parametrize("name", [*FUSED, *FUSED_EXPERTS, *MODULES, *DISCOVERED, *MIXED])
def test_awq_scales_it_and_it_computes_what_transformers_computes(name, tmp_path):
    found = way(name, tmp_path, "run")
    assert found.outcome is Outcome.WORKS, why(found)
    assert len(found.checks) == 7 and found.fused == (name in FUSED + FUSED_EXPERTS + FUSED_DISCOVERED)
    assert not any("vision" in linear for linear in found.quantized)
    left = [matrix for matrix in found.left_float if re.search(r"\.\d+\.", matrix) and "vision" not in matrix]
    some = name in MIXED + FUSED_EXPERTS
    assert bool(left) == some and bool(found.kept) == some and (0 < found.kept_share < 0.5) == some
    sources = {kind.found for kind in found.blocks}
    assert "discovered" in sources if name in DISCOVERED + MIXED + FUSED_EXPERTS else sources == {"table"}
    assert any(kind.edges for kind in found.blocks)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_it_computes_what_transformers_computes(name, tmp_path):
    found = way(name, tmp_path, "none")
    assert found.outcome is Outcome.WORKS, why(found)
    assert len(found.checks) == 7 and found.quantized
    refused = way(name, tmp_path / "scaled", "run")
    assert refused.outcome is Outcome.REFUSED and "`awq=none`" in refused.error


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name, tmp_path):
    found = way(name, tmp_path, "none")
    assert found.outcome is Outcome.REFUSED and REFUSED[name] in found.error
