"""`engine.model.Model` on tiny models, against `transformers` and float64."""

import copy
import math

import pytest
import torch

from engine.fused import FusedDecoder
from engine.model import About, Model
from engine.modules import ModuleDecoder
from engine.whole import ModuleRunner
from qlinear.backends.cpu import native
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import OptionError
from qlinear.progress import Note, silent
from tests.quantized import word_tokenizer
from tests.tiny import CONTEXT, VOCAB, in_bfloat16, tiny_model, tiny_tokens

ABOUT = About(name="tiny", code="cpu/torch bf16", precision="bf16", model_bytes=1)
PROMPT = "w5 w17 w80 w23"
needs_kernels = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")


def opened(model_type="llama", about=ABOUT, flash_attention=False, watch=silent, **overrides) -> Model:
    module = tiny_model(model_type, **overrides)
    runner = ModuleRunner(module, ReferenceBackend("cpu/torch"), flash_attention, quantized=False)
    return Model(about, runner, word_tokenizer(), watch)


def forwards(model: Model) -> list:
    """Grows by one with each forward of the model from now on."""
    seen = []
    model.module.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def text_of(tokens: torch.Tensor) -> str:
    return " ".join(f"w{token}" for token in tokens.tolist())


@torch.no_grad()
def whole_logits(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    return model.module(tokens.unsqueeze(0), use_cache=False).logits[0]


def going_on(model: Model, prompt: str, new_tokens: int) -> str:
    """The same in words, as they stand behind the prompt."""
    tokens = model.tokenizer(prompt)["input_ids"]
    both = tokens, tokens + answer(model, prompt, new_tokens)
    before, whole = (model.tokenizer.decode(ids, skip_special_tokens=True) for ids in both)
    assert whole.startswith(before)
    return whole.removeprefix(before)


def answer(model: Model, prompt: str, new_tokens: int) -> list[int]:
    """What `transformers` writes greedily."""
    ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
    options = dict(max_new_tokens=new_tokens, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0)
    return model.module.generate(ids, **options)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("flash_attention", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt"])
def test_an_answer_is_that_of_transformers(model_type, flash_attention):
    """In pieces that are one token each, here; a longer prompt comes after a shorter one, and a shorter after that."""
    model = opened(model_type, flash_attention=flash_attention, tie_word_embeddings=False)
    for prompt in (PROMPT, f"{PROMPT} w3 w99 w100", "w7"):
        expected = going_on(model, prompt, 20)
        pieces = list(model.stream(prompt, max_new_tokens=20))
        assert "".join(pieces) == expected and len(pieces) == expected.count("w") > 1
        assert model.generate([prompt], max_new_tokens=20) == [expected]


def test_several_prompts_are_answered_one_after_the_other():
    model = opened()
    prompts = [PROMPT, "w9", f"{PROMPT} w44"]
    assert model.generate(prompts, max_new_tokens=8) == ["".join(model.stream(p, max_new_tokens=8)) for p in prompts]
    assert model.generate([]) == []
    with pytest.raises(OptionError, match="^`prompts` has to be a list of texts; for one text, give a list of one$"):
        model.generate(PROMPT)


def test_nothing_is_read_before_the_first_piece_and_one_token_a_piece():
    model = opened(tie_word_embeddings=False)
    model.generate(["w5"], max_new_tokens=1)  # what is looked at once for all is looked at
    seen = forwards(model)
    pieces = model.stream(PROMPT, max_new_tokens=200)
    assert seen == []
    for count in (1, 2, 3):
        next(pieces)
        assert len(seen) == count
    pieces.close()  # the consumer has had enough: the model answers the next one as ever
    assert model.generate(["w7"], max_new_tokens=6) == [going_on(model, "w7", 6)]


def test_an_end_token_ends_the_answer_and_is_not_written():
    model = opened(tie_word_embeddings=False)
    whole = answer(model, PROMPT, 12)
    model.module.generation_config.eos_token_id = [whole[4], 1]
    assert model.end_tokens == {whole[4], 1, 2}  # and the tokenizer's own
    expected = whole[: whole.index(whole[4]) + 1]
    assert model.generate([PROMPT], max_new_tokens=12) == [" " + text_of(torch.tensor(expected))]
    model.module.generation_config.eos_token_id = None
    assert model.end_tokens == {2}


def test_drawing_by_chance_depends_on_the_seed_alone():
    model = opened()
    how = dict(max_new_tokens=20, temperature=1.5)
    drawn = [model.generate([PROMPT], seed=seed, **how) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = model.generate([PROMPT], max_new_tokens=20)
    assert model.generate([PROMPT], max_new_tokens=20, top_k=1) == greedy
    assert drawn[0] != greedy
    with pytest.raises(OptionError, match="`top_p=1.5` has to be above 0 and at most 1"):
        model.generate([PROMPT], top_p=1.5)


def test_a_chat_goes_through_the_template():
    model = opened()
    model.tokenizer.chat_template = "{% for message in messages %}w3 {{ message.content }} w4{% endfor %}"
    how = dict(max_new_tokens=8)
    (turn,), (text,), (other,) = (
        model.generate(["w50"], chat=True, **how), model.generate(["w3 w50 w4"], **how), model.generate(["w50"], **how)
    )  # fmt: skip
    assert f" {turn}" == text != other


def test_a_prompt_that_is_empty_or_too_long_with_its_answer():
    model = opened()
    with pytest.raises(OptionError, match="`prompt` '' is empty"):
        list(model.stream(""))
    message = (
        f"^a `prompt` of 4 and `max_new_tokens={CONTEXT - 3}` need {CONTEXT + 1} tokens, more than the model's context "
        f"of {CONTEXT}; ask for fewer$"
    )
    with pytest.raises(OptionError, match=message):
        list(model.stream(PROMPT, max_new_tokens=CONTEXT - 3))
    assert next(model.stream(PROMPT, max_new_tokens=CONTEXT - 4))
    with pytest.raises(OptionError, match="^`max_new_tokens=0` has to be a whole number from 1 up$"):
        list(model.stream(PROMPT, max_new_tokens=0))


def test_a_model_that_does_not_say_how_long_its_context_is():
    model = opened("bloom")
    assert model.max_positions is None and opened().max_positions == CONTEXT
    model.check_fits(10**9, "all of them")


@pytest.mark.parametrize("flash_attention", [False, True])
def test_logits_of_every_token(flash_attention):
    model = opened(flash_attention=flash_attention)
    for tokens in (tiny_tokens(1, 9)[0], tiny_tokens(1, 40)[0], tiny_tokens(1, 3)[0].int()):
        expected = whole_logits(model, tokens.long())
        for given in (tokens, tokens.tolist()):
            found = model.logits(given)
            assert found.shape == (len(tokens), VOCAB) and found.dtype == torch.float32
            assert (found - expected).abs().max() < 5e-5 * expected.abs().max()


def test_logits_are_a_copy():
    model, tokens = opened(), tiny_tokens(2, 9)
    first = model.logits(tokens[0])
    kept = first.clone()
    model.logits(tokens[1])
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    "tokens", [[], [[1, 2]], [[1, 2], [3]], [1.5], "w5 w6", None, torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3)]
)
def test_what_is_no_list_of_tokens(tokens):
    with pytest.raises(OptionError, match="^`tokens` have to be one list of token ids"):
        opened().logits(tokens)


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_tokens_that_the_model_does_not_have(wrong):
    with pytest.raises(OptionError, match=f"^`tokens` have to be from 0 to {VOCAB - 1}, as those of this model are$"):
        opened().logits([3, wrong])


def test_more_tokens_than_the_context_has():
    with pytest.raises(OptionError, match=f"^the tokens need {CONTEXT + 1} tokens, more than"):
        opened().logits([3] * (CONTEXT + 1))


@pytest.mark.parametrize(("window", "n_windows", "count"), [(10, None, 5), (10, 2, 2), (53, None, 1), (2, None, 26)])
def test_perplexity(window, n_windows, count):
    """Each window by itself, all its tokens but the first predicted; softmaxes in float64."""
    model, tokens = opened("gemma2"), tiny_tokens(1, 53)[0]
    total = 0.0
    for part in tokens[: count * window].split(window):
        logits = whole_logits(model, part)[:-1].double()
        total -= logits.log_softmax(dim=1).gather(1, part[1:].unsqueeze(1)).sum().item()
    expected = math.exp(total / (count * (window - 1)))
    assert model.perplexity(text_of(tokens), window, n_windows) == pytest.approx(expected, rel=1e-4)


def test_windows_longer_than_the_text_or_the_context():
    model, text = opened(), text_of(tiny_tokens(1, 20)[0])
    with pytest.raises(OptionError, match="^the text has 20 tokens, less than one `window` of 21"):
        model.perplexity(text, window=21)
    with pytest.raises(OptionError, match=f"^windows of `window` need {CONTEXT + 1} tokens"):
        model.perplexity(text, window=CONTEXT + 1)
    with pytest.raises(OptionError, match="^`n_windows=3`: the text has only 2 windows"):
        model.perplexity(text, window=10, n_windows=3)


def test_which_decoder_runs():
    assert isinstance(opened().decoder(20), ModuleDecoder) and not opened().decoder(20).static
    notes = []
    model = opened("opt", flash_attention=True, watch=notes.append)
    assert model.decoder(20).static and not model.decoder(20, rewinds=True).static
    (note, _) = notes
    assert isinstance(note, Note)
    assert note.text.startswith("`flash_attention` runs the model's own modules: the fused decoder does not know opt")


@needs_kernels
def test_the_fused_decoder_runs_where_it_can():
    from qlinear.backends.cpu.backend import CpuBackend

    module = in_bfloat16(tiny_model("llama"))
    model = Model(ABOUT, ModuleRunner(module, CpuBackend(), True, quantized=False), word_tokenizer(), silent)
    assert isinstance(model.decoder(20), FusedDecoder)
    tokens = tiny_tokens(1, 30)[0]
    with torch.no_grad():
        expected = copy.deepcopy(module).float()(tokens.unsqueeze(0)).logits[0]
    assert (model.logits(tokens) - expected).square().mean().sqrt() < 0.012 * expected.square().mean().sqrt()


@needs_kernels
def test_a_meter_sees_every_matmul():
    """So nothing is fused where there is one, and a float model has none."""
    from qlinear.backends.cpu.backend import CpuBackend

    class Meters(CpuBackend):
        def meter(self):
            return "a meter"

    module = in_bfloat16(tiny_model("llama"))
    model = Model(ABOUT, ModuleRunner(module, Meters(), True), word_tokenizer(), silent)
    assert model.meter == "a meter" and isinstance(model.decoder(20), ModuleDecoder)
    bf16 = Model(ABOUT, ModuleRunner(module, Meters(), True, quantized=False), word_tokenizer(), silent)
    assert bf16.meter is None and isinstance(bf16.decoder(20), FusedDecoder)


def test_repr():
    assert repr(opened()) == "Model('tiny' on cpu/torch bf16)"


@pytest.mark.parametrize("room", [0, -1])
def test_a_decoder_without_room_is_refused(room):
    model = opened()
    for made in (model.decoder, lambda tokens: model.slots(tokens, 2)):
        with pytest.raises(OptionError, match=f"^`max_tokens={room}` has to be a whole number from 1 up$"):
            made(room)
