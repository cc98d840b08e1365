"""What is found out of a row: that a product which computes something else is caught, and what it is compared with."""

from pathlib import Path

import pytest
import torch

from benchmarks.models import steps
from benchmarks.models.exact import open_exact
from benchmarks.models.record import Outcome, Way
from benchmarks.models.reference import dequantized, generated, open_reference, whole_logits
from benchmarks.models.steps import examine, look
from benchmarks.models.tiny import Row, random_tokens
from engine.model import Model
from engine.modules import ModuleDecoder
from qlinear.errors import ModelError
from run_awq import quantize
from tests.reading import read

ROW = Row("mistral")  # with a window of 16
CHECKS = [
    "decode, float32, growing cache", "decode, float32, static cache", "score, float32", "decode, modules",
    "score, modules", "decode, flash attention", "score, flash attention",
]  # fmt: skip


def rounded(folder: Path) -> Way:
    (way,) = examine(ROW, folder, ("none",)).ways
    return way


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    way = rounded(folder)
    assert way.outcome is Outcome.WORKS and way.fused and [check.name for check in way.checks] == CHECKS
    assert len(way.quantized) == 14 and way.left_float == () and way.kept == () and way.notes == ()
    assert [(kind.count, kind.found, kind.edges) for kind in way.blocks] == [(2, "none", 0)] and way.kept_share == 0
    assert all(check.noise > 1e-3 for check in way.checks if not check.exact)
    return folder / "quantized-none"


def test_weights_are_dequantized_by_the_formula(checkpoint):
    from safetensors.torch import load_file

    stored, name = load_file(checkpoint / "model.safetensors"), "model.layers.0.mlp.down_proj"
    words, shape = stored[f"{name}.weight_packed"], stored[f"{name}.weight_shape"].tolist()
    row, column = 5, 77
    code = words[row, column // 8].item() >> (4 * (column % 8)) & 15
    zero = stored[f"{name}.weight_zero_point"][row // 8, column // 32].item() >> (4 * (row % 8)) & 15
    expected = (code - zero) * stored[f"{name}.weight_scale"][row, column // 32].item()
    weights, linears = dequantized(checkpoint)
    weight = weights[f"{name}.weight"]
    assert len(linears) == 14 and f"{name}.weight" in linears
    assert list(weight.shape) == shape and weight[row, column].item() == pytest.approx(expected, rel=1e-6)


def test_the_reference_is_of_these_weights(checkpoint):
    reference, weights = open_reference(checkpoint, torch.float32), dequantized(checkpoint)[0]
    assert reference.strange == () and type(reference.model).__name__ == "MistralForCausalLM"
    assert all(torch.equal(parameter, weights[name]) for name, parameter in reference.model.named_parameters())


def test_a_tensor_that_transformers_misses_is_named(checkpoint, monkeypatch):
    weights, linears = dequantized(checkpoint)
    weights["model.norm.bias"] = weights.pop("model.norm.weight")
    monkeypatch.setattr("benchmarks.models.reference.dequantized", lambda directory: (weights, linears))
    assert set(open_reference(checkpoint, torch.float32).strange) == {"model.norm.weight", "model.norm.bias"}


def test_generated_is_greedy_and_can_be_forced(checkpoint):
    model, prompt = open_reference(checkpoint, torch.float32).model, random_tokens(8, seed=1)
    tokens, logits = generated(model, prompt, 4)
    assert tokens.tolist() == logits.argmax(-1).tolist()
    other = (tokens + 1) % 300
    forced, behind = generated(model, prompt, 4, forced=other)
    assert torch.equal(forced, other) and torch.equal(behind[0], logits[0])
    whole = whole_logits(model, torch.cat([prompt, other]))
    assert (behind - whole[7:-1]).abs().max() < 1e-4


def test_what_counts_from_the_padding_is_told_so(tmp_path):
    """RoBERTa's `generate` gives what its own forward of the whole text does."""
    row = Row("roberta")
    (way,) = examine(row, tmp_path, ("none",)).ways
    assert way.outcome is Outcome.WORKS and way.notes == () and len(way.checks) == 7


def test_float32_is_the_product_without_rounding(checkpoint):
    model, tokens = open_reference(checkpoint, torch.float32).model, random_tokens(40, seed=2)
    found = read(ModuleDecoder(open_exact(checkpoint), 40, static_cache=False), tokens)
    assert (found - whole_logits(model, tokens)).abs().max() < 1e-5


def failed(way: Way) -> list[str]:
    return [check.name for check in way.checks if not check.right]


def test_positions_that_are_off_are_wrong(tmp_path, monkeypatch):
    right = ModuleDecoder._inputs

    def off(self, tokens, start, wanted):
        inputs = right(self, tokens, start, wanted)
        return {**inputs, "position_ids": inputs["position_ids"] - start // 2}

    monkeypatch.setattr(ModuleDecoder, "_inputs", off)
    way = rounded(tmp_path)
    assert way.outcome is Outcome.WRONG and failed(way) == [CHECKS[0], CHECKS[1], CHECKS[3]]


def test_scores_that_are_off_are_wrong(tmp_path, monkeypatch):
    right = Model.logits
    monkeypatch.setattr(Model, "logits", lambda self, tokens: right(self, tokens.flip(0)))
    way = rounded(tmp_path)
    assert way.outcome is Outcome.WRONG and failed(way) == ["score, modules", "score, flash attention"]


def test_a_model_that_is_another_one_when_it_is_loaded_again(tmp_path, monkeypatch):
    right, calls = Model.logits, iter(range(9))
    monkeypatch.setattr(Model, "logits", lambda self, tokens: right(self, tokens) + 1e-4 * next(calls))
    assert rounded(tmp_path).notes == ("loaded again, it gives other logits",)


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (ModelError("no; use another"), Outcome.REFUSED, "no; use another"),
        (ModelError("no;\nuse another"), Outcome.REFUSED, "no; use another"),
        (KeyError("x"), Outcome.FAULT, "KeyError: 'x'"),
    ],
)
def test_how_it_refuses(tmp_path, monkeypatch, error, outcome, said):
    def refuse(*_):
        raise error

    monkeypatch.setattr(steps, "quantize", refuse)
    way = rounded(tmp_path)
    assert (way.outcome, way.error) == (outcome, said) and way.where.startswith("quantize")


def test_a_step_that_hangs_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "LIMIT_S", 5.0)

    def hang(*given):
        quantize(*given)
        while True:
            pass

    monkeypatch.setattr(steps, "quantize", hang)
    way = rounded(tmp_path)
    assert (way.outcome, way.error) == (Outcome.FAULT, "TimeoutError: not done in 5 s of processor time")


def test_what_is_no_type_is_no_model():
    assert look("nosuch").unbuilt.startswith("KeyError: 'nosuch'")


def test_what_transformers_does_not_run_is_unproven(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no cache")

    monkeypatch.setattr(steps, "generated", broken)
    way = rounded(tmp_path)
    assert (way.outcome, way.error) == (Outcome.UNPROVEN, "ValueError: no cache")
