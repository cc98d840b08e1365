"""Long texts, timed and compared: what is asked of whom, and what is made of the answers."""

import os
import sys

import pytest
from click.testing import CliRunner

from benchmarks import contexts
from benchmarks.contexts import LongRace, Run
from benchmarks.cpu.contestant import Answer
from benchmarks.cpu.race import Entry
from benchmarks.cpu.report import Engine, Way
from qlinear.backends.cpu import native
from run_awq import load
from tests.quantized import quantized, save_float
from tests.tiny import VOCAB

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


def rows_of(markdown):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]


def answers(*seconds):
    """A round: prompt and token seconds by prompt length."""
    return {length: Answer(prompt_s, token_s, 0, 0) for length, prompt_s, token_s in seconds}


def test_what_each_is_started_with(tmp_path):
    race = LongRace(prompt=300, new=8, rounds=1, starts=1, threads=2, programs={}, kv_bits=8)
    spec = race.spec(Entry(Way(Engine.LLAMA, "GGUF"), tmp_path))
    assert (spec.kv_bits, spec.context, spec.engine) == (8, 308, Engine.LLAMA)


def test_ratios_are_the_medians_of_the_rounds_own():
    ours = Run("ours", 8, [answers((100, 1, 0.1), (400, 5, 0.2)), answers((100, 2, 0.1), (400, 8, 0.1)),
                           answers((100, 1, 0.1), (400, 4, 0.4))])  # fmt: skip
    theirs = Run("llama.cpp", 16, [answers((100, 2, 0.2), (400, 10, 0.2)), answers((100, 2, 0.1), (400, 4, 0.3)),
                                   answers((100, 2, 0.4), (400, 10, 1))])  # fmt: skip
    headings, _, first, second = rows_of(contexts.table([ours, theirs], (100, 400), "prefill").markdown())
    assert headings[2:] == ["prefill at 100", "prefill at 400", "last over first", "over llama.cpp, 16 bits"]
    # 100, 50, 100 and 80, 50, 100 tokens a second; 0.8, 1, 1; theirs 40, 100, 40: 2, 0.5, 2.5
    assert first == ["ours", "8", "100.0", "80.0", "1.00", "2.00x"]
    assert second == ["llama.cpp", "16", "50.0", "40.0", "0.80", ""]
    _, _, first, _ = rows_of(contexts.table([ours, theirs], (100, 400), "decode").markdown())
    # 10, 10, 10 and 5, 10, 2.5; theirs 5, 3.33, 1: 1, 3, 2.5
    assert first == ["ours", "8", "10.0", "5.0", "0.50", "2.50x"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contexts")
    text = folder / "text.txt"
    text.write_text(" ".join(f"w{i * 7 % (VOCAB - 3) + 3}" for i in range(125)))
    return quantized(save_float(folder / "float"), folder / "made"), text


def test_the_command_times_and_compares(made, monkeypatch):
    checkpoint, text = made
    monkeypatch.setattr(LongRace, "tokens", lambda self, count: tuple(3 + i % (VOCAB - 3) for i in range(count)))
    timed = ("--checkpoint", str(checkpoint), "--prompts", "8,40", "--new", "2", "--rounds", "1")
    compared = ("--quality", str(checkpoint), "--dataset", str(text), "--window", "40", "--n_windows", "3")
    done = CliRunner().invoke(contexts.main, [*timed, *compared], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    of_speed, of_quality = rows_of(done.output)[:8], rows_of(done.output)[8:]
    assert [row[:2] for row in of_speed if row[0] == "ours"] == [["ours", "16"], ["ours", "8"]] * 2
    _, _, exact, rounded = of_quality
    for cells, kv_bits in ((exact, 16), (rounded, 8)):
        model = load(checkpoint, kv_bits=kv_bits)
        assert cells[:3:2] == [str(kv_bits), f"{model.perplexity(text.read_text(), 40, 3):.4f}"]
    assert 1e-7 < float(rounded[3]) < 0.01 and float(rounded[4].rstrip("%")) > 90


def test_who_runs_beside_ours(monkeypatch, tmp_path):
    asked = []

    class Recorded:
        number = os.getpid()

        def __init__(self, entry, race):
            spec = race.spec(entry)
            asked.append((spec.engine, spec.kv_bits, spec.program, race.python(spec.engine)))

        def ask(self, job):
            return Answer(1, 1, 0, 0)

        def close(self):
            pass

    monkeypatch.setattr(contexts, "Contestant", Recorded)
    given = dict(prompts=(4,), new=1, rounds=2, checkpoint=str(tmp_path), gguf="file.gguf", llama_python="/theirs")
    found = contexts.runs(given | {"ik_llama": "/sources"})
    assert [(run.name, run.kv_bits, len(run.rounds)) for run in found] == [
        (name, bits, 2) for name in ("ours", "llama.cpp", "ik_llama.cpp") for bits in (16, 8)
    ]
    assert asked[2:] == [
        *((Engine.LLAMA, bits, "", "/theirs") for bits in (16, 8)),
        *((Engine.IK, bits, "/sources", sys.executable) for bits in (16, 8)),
    ]
    assert {run.name for run in contexts.runs(given | {"ik_llama": None})} == {"ours", "llama.cpp"}
    assert {run.name for run in contexts.runs(given | {"gguf": None, "ik_llama": "/sources"})} == {"ours"}
