"""What the yardstick counts, on models of the tests' own."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.yardstick.__main__ import main, table
from benchmarks.yardstick.measure import Apart, collect, mean, over_draws
from benchmarks.yardstick.texts import MODULES, QUESTIONS, Passage, chat, code
from run_awq import load
from tests.quantized import quantized, save_float


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yardstick")
    source = save_float(folder / "tiny", max_position_embeddings=256)
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}")
    return source, quantized(source, folder / "w4"), quantized(source, folder / "w3", w_bit=3)


def test_an_error_is_that_of_passages_and_not_of_tokens():
    """Against jackknife, the other way to the error of a ratio; a passage counts by its tokens."""
    random = np.random.default_rng(0)
    passages = [random.normal(random.normal(5, 3), 1, random.integers(5, 90)) for _ in range(40)]
    found, all_tokens = mean(passages), np.concatenate(passages)
    assert found.value == pytest.approx(all_tokens.mean())
    left = [np.concatenate(passages[:i] + passages[i + 1 :]).mean() for i in range(40)]
    jackknife = np.sqrt(39 / 40 * np.square(np.array(left) - np.mean(left)).sum())
    assert found.error == pytest.approx(jackknife, rel=0.05)
    assert found.error > 4 * all_tokens.std() / np.sqrt(len(all_tokens))


def test_what_two_have_in_common_drops_out_of_their_difference():
    random = np.random.default_rng(1)
    common = [np.full(30, level) for level in random.normal(3, 2, 50)]
    one, other = (
        Apart([level + shift + random.normal(0, 0.01, 30) for level in common], common) for shift in (0.5, 0.2)
    )
    difference = one.above(other)
    assert difference.value == pytest.approx(0.3, abs=0.01) and difference.error < 0.01 * one.mean.error
    draws = over_draws([one, other, one])
    values = [one.mean.value, other.mean.value, one.mean.value]
    assert (draws.value, draws.error) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_divergences_are_those_of_the_predictions_asked_for(places):
    source, w4, w3 = places
    reference, models = load(source, precision="bf16"), [load(w4), load(w3)]
    random = np.random.default_rng(2)
    passages = [Passage(random.integers(3, 90, length), first) for length, first in ((40, 1), (25, 9), (3, 2))]
    for model, found in zip(models, collect(models, reference, passages), strict=True):
        for passage, divergence, agreed in zip(passages, found.divergences, found.agreements, strict=True):
            rows = slice(passage.first - 1, len(passage.tokens) - 1)
            p, q = (one.logits(passage.tokens)[rows].double().log_softmax(-1) for one in (reference, model))
            expected = (p.exp() * (p - q)).sum(-1)
            assert torch.from_numpy(divergence).double() == pytest.approx(expected, abs=1e-5)
            assert (agreed == (p.argmax(-1) == q.argmax(-1)).numpy()).all()
        everything = np.sort(np.concatenate(found.divergences))
        assert found.quantile(0.99) == pytest.approx(np.quantile(everything, 0.99)) and everything[0] > -1e-5


def test_answers_are_the_float_models_own_and_they_alone_count(places):
    model = load(places[0], precision="bf16")
    for seed, passage in enumerate(chat(model, 3, 12)):
        prompt = model.encode_chat([{"role": "user", "content": QUESTIONS[seed]}])
        assert passage.first == len(prompt) and (passage.tokens[: len(prompt)] == prompt).all()
        assert len(prompt) < len(passage.tokens) <= len(prompt) + 12
    again = chat(model, 3, 12)
    assert all((one.tokens == two.tokens).all() for one, two in zip(chat(model, 3, 12), again, strict=True))


def test_every_module_is_there_and_long_enough(places):
    model = load(places[0], precision="bf16")
    assert [len(one.tokens) for one in code(model, len(MODULES), 128)] == [128] * len(MODULES)


def test_the_command_tells_means_scatter_and_differences(places, tmp_path):
    source, w4, w3 = map(str, places)
    text = tmp_path / "web.txt"
    text.write_text("It was so. " * 300)
    asked = ["--model_name", source, "--web", str(text), "--passages", "2", "--window", "16"]
    done = CliRunner().invoke(
        main, [*asked, "--recipe", f"four={w4}", "--recipe", f"both={w4},{w3}", "--json", str(tmp_path / "found.json")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["web.txt", "chat", "code"]
    for kind in found.values():
        (four,), (same, three) = kind["four"], kind["both"]
        assert four == same and sum(three["sums"]) > sum(four["sums"]) > 0
        assert len(four["sums"]) == len(four["tokens"]) == 2
    assert CliRunner().invoke(main, [*asked, "--recipe", w4]).exit_code == 2


def test_a_row_tells_the_first_draw_and_the_mean_of_all():
    first = Apart([np.array([1.0, 3.0]), np.array([2.0])], [np.array([True, False]), np.array([True])])
    second = Apart([np.array([2.0, 4.0]), np.array([3.0])], first.agreements)
    (plain, both) = table("title", {"plain": [first, second], "both": [second, first]}).rows
    assert plain[:4] == ["plain", "2", "2.5000 ± 0.0000", "0.7071"] and plain[4] == ""
    assert both[4] == "0.0000 ± 1.0000" and both[5:] == ["3.0000", "3.980", "0.667 ± 0.222"]
