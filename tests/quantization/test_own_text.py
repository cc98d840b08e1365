"""Texts that a model writes itself: full rows, allowed tokens, its own probabilities, and no trace left behind."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken

from quantization.texts.own import ordinary_tokens, self_samples
from tests.tiny import VOCAB, tiny_model

ORDINARY = torch.arange(3, VOCAB - 8)  # 0, 1, 2 are special, and the last few stand for an embedding's padding


@pytest.mark.parametrize("model_type", ["llama", "gemma3", "bloom"])
def test_rows_are_full_and_hold_ordinary_tokens_only(model_type, monkeypatch):
    monkeypatch.setattr("quantization.texts.own.BATCH", 16)
    tokens = self_samples(tiny_model(model_type), ORDINARY, 20, 24, 0)
    assert tokens.shape == (20, 24) and tokens.dtype == torch.int64
    assert torch.isin(tokens, ORDINARY).all()
    assert len(tokens[:, 0].unique()) > 10, "first tokens are drawn evenly"


@pytest.mark.parametrize("seqlen", [1, 2, 3, 12])
def test_each_text_begins_with_the_token_for_that(seqlen):
    model = tiny_model("llama")
    tokens = self_samples(model, ORDINARY, 6, seqlen, 0, bos=1)
    assert tokens.shape == (6, seqlen)
    assert (tokens[:, 0] == 1).all() and torch.isin(tokens[:, 1:], ORDINARY).all()
    assert seqlen == 1 or torch.equal(tokens[:, 1:2], self_samples(model, ORDINARY, 6, 1, 0))


def test_a_seed_gives_the_same_tokens_and_the_global_generator_goes_on_as_it_was():
    model = tiny_model("llama")
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    first, again, other = (self_samples(model, ORDINARY, 3, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_rows_of_one_token():
    assert self_samples(tiny_model("llama"), ORDINARY, 2, 1, 0).shape == (2, 1)


def test_the_models_own_settings_for_generation_do_not_count():
    """An end token that is likely would cut rows short; greedy and penalised choices would be other texts."""
    model = tiny_model("llama")
    expected = self_samples(model, ORDINARY, 3, 16, 0)
    for name, value in dict(
        top_k=1, top_p=0.1, min_p=0.9, typical_p=0.5, repetition_penalty=9.0, no_repeat_ngram_size=1, num_beams=2,
        eos_token_id=int(expected[0, 4]), max_new_tokens=3, forced_eos_token_id=5, num_return_sequences=2,
    ).items():  # fmt: skip
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert torch.equal(self_samples(model, ORDINARY, 3, 16, 0), expected)
    assert model.generation_config.to_dict() == before


def test_tokens_come_with_the_models_probabilities_at_temperature_0_8():
    """Second tokens after each of two first ones, against softmax(logits / 0.8) in float64."""
    model, allowed = tiny_model("llama"), torch.tensor([5, 9, 40, 77])
    tokens = self_samples(model, allowed, 1600, 2, 0)
    for first in allowed:
        second = tokens[tokens[:, 0] == first, 1]
        with torch.no_grad():
            logits = model(first.view(1, 1)).logits[0, -1, allowed].double()
        found = torch.stack([(second == token).double().mean() for token in allowed])
        error = (found - (logits / 0.8).softmax(-1)).abs().max()
        assert error < 3.5 * (0.25 / len(second)) ** 0.5
        assert len(second) > 300


def test_ordinary_tokens_are_those_that_stand_for_text():
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {"a": 3, "b": 1, "</s>": 0, "<tool>": 4, "wide": 9, "added": 5, "<pad>": 2},
        all_special_ids=[0, 2],
        added_tokens_decoder={4: AddedToken("<tool>", special=True), 5: AddedToken("added", special=False)},
    )
    assert ordinary_tokens(tokenizer, vocab_size=8).tolist() == [1, 3, 5]
