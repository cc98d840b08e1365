"""What a generation_config asks, against `generate` of `transformers` with the same config."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from engine.model import About, Model
from engine.modules import ModuleDecoder
from engine.rules import ModuleRules, PlainRules, both
from engine.sampling import sampler
from engine.whole import ModuleRunner
from qlinear.backends.reference import ReferenceBackend
from qlinear.backends.stack import Unsupported
from qlinear.errors import ModelError
from qlinear.progress import Note
from tests.quantized import word_tokenizer
from tests.reading import generate
from tests.tiny import tiny_model, tiny_tokens

NEW, END = 16, 2
PROMPT = tiny_tokens(1, 12)[0]


def model_with(**asked):
    """Its head is its own: with the embedding's it writes one token for ever."""
    model = tiny_model("llama", tie_word_embeddings=False)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=END, pad_token_id=0, **asked)
    return model


def written(model, new: int = NEW, end=frozenset({END})) -> list[int]:
    decoder = ModuleDecoder(model, 64, static_cache=False)
    adjust = ModuleRules(model, end).for_text(len(PROMPT), new)
    return [token.id for token in generate(decoder, PROMPT, new, end, adjust=adjust)]


def reference(model, new: int = NEW) -> list[int]:
    ids = PROMPT.unsqueeze(0)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return out[0, len(PROMPT) :].tolist()


PLAIN = written(model_with())
ASKED = [
    dict(repetition_penalty=1.8),
    dict(repetition_penalty=0.6),
    dict(no_repeat_ngram_size=2),
    dict(suppress_tokens=PLAIN[:3]),
    dict(begin_suppress_tokens=[PLAIN[0]]),
    dict(bad_words_ids=[[PLAIN[0]], [PLAIN[1], PLAIN[2]]]),
    dict(forced_bos_token_id=9),
    dict(forced_eos_token_id=END),
    dict(sequence_bias=[[[PLAIN[3]], -50.0]]),
    dict(eos_token_id=[PLAIN[2], END], min_new_tokens=9),
    dict(eos_token_id=[PLAIN[2], END], min_length=len(PROMPT) + 7),
    dict(exponential_decay_length_penalty=(2, 1.5)),
    dict(repetition_penalty=1.3, no_repeat_ngram_size=3, suppress_tokens=[PLAIN[0]], remove_invalid_values=True),
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: ", ".join(asked))
def test_tokens_are_those_of_generate(asked):
    settings = dict(asked)
    ends = frozenset(settings.pop("eos_token_id", [END]))
    model = model_with(**settings)
    model.generation_config.eos_token_id = sorted(ends)
    before = copy.deepcopy(model.generation_config.to_dict())
    found = written(model, end=ends)
    assert found == reference(model)
    assert model.generation_config.to_dict() == before
    if "forced_bos_token_id" not in asked:  # which is for prompts of one token
        assert found != PLAIN[: len(found)]


def test_a_config_that_asks_for_nothing_costs_nothing():
    assert ModuleRules(model_with(), frozenset({END})).for_text(5, 5) is None


def test_a_penalty_counts_when_tokens_are_drawn():
    """A token that the text holds is never drawn where its logit is made infinitely small."""
    model = model_with(suppress_tokens=[token for token in range(128) if token not in (7, 8)])
    adjust = ModuleRules(model, frozenset({END})).for_text(len(PROMPT), 40)
    decoder = ModuleDecoder(model, 64, static_cache=False)
    drawn = {token.id for token in generate(decoder, PROMPT, 40, choose=sampler(5.0), adjust=adjust)}
    assert drawn == {7, 8}


def test_what_is_not_followed_is_named():
    model = model_with(num_beams=4, stop_strings=["x"], do_sample=True, temperature=0.6, top_p=0.9, max_time=3.0)
    asks = "the model's generation_config.json asks for"
    assert ModuleRules(model, frozenset()).notes == (
        f"{asks} num_beams 4, which is not followed",
        f"{asks} stop_strings ['x'], which is not followed",
        f"{asks} max_time 3.0, which is not followed",
        f"{asks} tokens to be drawn (temperature 0.6, top_p 0.9); they are where `temperature` is given",
    )
    assert written(model) == PLAIN


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(repetition_penalty=-2.0), "`penalty` has to be a strictly positive float, but is -2.0"),
        (dict(suppress_tokens=["x"]), ".+"),
        (dict(bad_words_ids=[]), "`bad_words_ids` has to be a non-empty list, but is \\[\\]."),
    ],
)
def test_what_cannot_be_followed(asked, message):
    with pytest.raises(ModelError, match=f"^the model's generation_config.json: {message}$") as error:
        model = model_with()
        for name, value in asked.items():
            setattr(model.generation_config, name, value)
        written(model)
    assert "\n" not in str(error.value)


def test_a_model_follows_them_and_notes_the_rest_once():
    seen = []
    about = About(name="tiny", code="cpu/torch bf16", precision="bf16", model_bytes=1)
    module = model_with(repetition_penalty=1.8, num_beams=2)
    model = Model(
        about,
        ModuleRunner(module, ReferenceBackend("cpu/torch"), False, quantized=False),
        word_tokenizer(),
        seen.append,
    )
    prompt = " ".join(f"w{token}" for token in PROMPT.tolist())
    module.generation_config.num_beams = 1
    expected = model.tokenizer.decode(reference(module), skip_special_tokens=True)
    module.generation_config.num_beams = 2
    assert model.generate([prompt, prompt], max_new_tokens=NEW) == [f" {expected}"] * 2
    asks = "the model's generation_config.json asks for"
    assert seen == [Note(f"{asks} num_beams 2, which is not followed")]


def test_two_adjustments_come_one_after_the_other():
    def doubled(text, logits):
        return logits * len(text)

    def above(text, logits):
        return logits + 1

    text, logits = PROMPT.numpy()[:2], torch.ones(3).numpy()
    assert (
        both(doubled, above)(text, logits).tolist() == [3] * 3
        and both(above, doubled)(text, logits).tolist() == [4] * 3
    )
    assert both(None, above) is above and both(doubled, None) is doubled and both(None, None) is None


def test_a_token_of_the_number_0_is_one():
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        with pytest.raises(Unsupported, match=f"asks for {name}$"):
            PlainRules({name: 0})
    assert PlainRules({"min_length": 0, "no_repeat_ngram_size": 0}).for_text(1, 1) is None
