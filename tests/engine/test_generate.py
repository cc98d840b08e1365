"""The token loop against `transformers`' own greedy generation."""

import time

import numpy as np
import pytest
import torch

from architectures.linears import block_linears
from architectures.registry import find_family
from engine.modules import ModuleDecoder
from qlinear.backends.reference import ReferenceBackend
from qlinear.grid import Grid
from qlinear.packing import PackedWeight
from qlinear.replace import LinearWeight, replace_linears
from qlinear.solvers.rtn import rtn
from tests.reading import generate
from tests.tiny import VARIANTS, VOCAB, in_bfloat16, tiny_model, tiny_tokens

NEW = 12  # with the prompt, past the tiny models' sliding window of 8
NO_END = 10**6


def reference(model, prompt: torch.Tensor, new_tokens: int = NEW, end: int = NO_END) -> list[int]:
    """What `model.generate` writes after the prompt, greedily."""
    options = dict(max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=0, use_cache=True)
    ids = prompt.unsqueeze(0)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def written(*arguments, **options) -> list[int]:
    return [token.id for token in generate(*arguments, **options)]


class Counting:
    """A decoder that finds the token after the last likeliest, and keeps what it was asked to read."""

    def __init__(self):
        self.asked = []

    def read(self, tokens, known=0, rows=None):
        self.asked.append((tokens.tolist(), known, rows))
        logits = np.zeros((rows, VOCAB), np.float32)
        logits[-1, tokens[-1] + 1] = 1
        yield logits


@pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static cache"])
@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_tokens_are_those_of_transformers(model_type, overrides, static):
    model = tiny_model(model_type, **overrides)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=static)
    for row, length in enumerate((10, 3)):
        prompt = tiny_tokens(2, 10)[row, :length]
        assert written(decoder, prompt, NEW) == reference(model, prompt)


@pytest.mark.parametrize("static", [False, True])
def test_a_cache_of_just_the_size_needed(static):
    model, prompt = tiny_model("llama"), tiny_tokens(1, 6)[0]
    decoder = ModuleDecoder(model, max_tokens=6 + NEW - 1, static_cache=static)  # the last token is not read
    assert written(decoder, prompt, NEW) == reference(model, prompt)


def test_each_text_is_the_last_one_and_the_token_chosen():
    decoder, prompt = Counting(), torch.tensor([5, 9, 20])
    assert written(decoder, prompt, 3) == [21, 22, 23]
    assert decoder.asked == [([5, 9, 20], 0, 1), ([5, 9, 20, 21], 3, 1), ([5, 9, 20, 21, 22], 4, 1)]
    assert prompt.tolist() == [5, 9, 20]


def test_nothing_is_read_before_a_token_is_asked_for():
    decoder = Counting()
    tokens = generate(decoder, torch.tensor([5, 9, 20]), 100)
    assert decoder.asked == []
    for count in (1, 2):
        next(tokens)
        assert len(decoder.asked) == count


def test_a_consumer_may_stop_early_and_begin_another_text():
    model, (first, second) = tiny_model("llama"), tiny_tokens(2, 6)
    decoder = ModuleDecoder(model, 32, static_cache=True)
    for _ in zip(range(3), generate(decoder, first, NEW), strict=False):
        pass
    assert written(decoder, second, NEW) == reference(model, second)


@pytest.mark.parametrize("static", [False, True])
def test_it_stops_after_an_end_token(static):
    model, prompt = tiny_model("llama"), tiny_tokens(1, 6)[0]
    whole = reference(model, prompt)
    end = whole[4]
    expected = whole[: whole.index(end) + 1]
    assert written(ModuleDecoder(model, 32, static), prompt, NEW, frozenset({end, 999})) == expected
    assert reference(model, prompt, end=end) == expected


def test_an_end_token_that_comes_first():
    decoder = Counting()
    assert written(decoder, torch.tensor([20]), NEW, frozenset({21})) == [21]
    assert len(decoder.asked) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_as_many_tokens_as_asked_for(count):
    assert written(Counting(), torch.tensor([20]), count) == list(range(21, 21 + count))


def test_a_token_is_timed_up_to_its_choice(monkeypatch):
    """Reading takes 2 seconds a token, choosing 0.5, and what is done in between is nobody's."""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Counting):
        def read(self, tokens, known=0, rows=None):
            clock[0] += 2 * (len(tokens) - known)
            yield from super().read(tokens, known, rows)

    def choose(logits):
        clock[0] += 0.5
        return int(logits.argmax())

    seconds = []
    for token in generate(Slow(), torch.tensor([5, 9, 20]), 3, choose=choose):
        seconds.append(token.seconds)
        clock[0] += 1000
    assert seconds == [6.5, 2.5, 2.5]


def test_the_choice_of_a_token_is_the_callers():
    """The least likely token, each time: logits are float32 `(vocabulary,)`."""
    seen = []

    def choose(logits):
        seen.append((logits.dtype, tuple(logits.shape)))
        return int(logits.argmin())

    model, prompt = in_bfloat16(tiny_model("llama")), tiny_tokens(1, 6)[0]
    found = written(ModuleDecoder(model, 32, False), prompt, 3, choose=choose)
    assert seen == [(np.float32, (VOCAB,))] * 3
    tokens = prompt.tolist()
    for token in found:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        assert logits[token] <= logits.min() + 2**-6 * logits.abs().max()
        tokens.append(token)


def quantize(model, bits: int = 4) -> torch.nn.Module:
    for block in find_family(model.config).block_names(model):
        for name, linear in block_linears(model.get_submodule(block)).items():
            bias = None if linear.bias is None else linear.bias.data
            weight = LinearWeight(PackedWeight.pack(rtn(linear.weight.data, Grid(bits, 32))), bias)
            replace_linears(model, {f"{block}.{name}": weight}, ReferenceBackend("cpu/torch"))
    return model


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "opt", "gpt_neox", "falcon", "bloom", "gemma2"])
def test_a_batch_with_left_padding_gives_what_one_by_one_gives(model_type, bits, cache):
    # A tied head makes tiny random models repeat one token for ever.
    model = quantize(tiny_model(model_type, tie_word_embeddings=False), bits)
    prompts = [tiny_tokens(3, 11)[row, :length] for row, length in enumerate((3, 11, 7))]
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    options = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=NO_END, pad_token_id=0)
    implementation = {"cache_implementation": "static"} if cache == "static" else {}
    batch = model.generate(ids, attention_mask=mask, **options, **implementation)[:, longest:].tolist()
    assert batch == [reference(model, prompt) for prompt in prompts]
    assert len({tuple(row) for row in batch}) == len(prompts)


@pytest.mark.parametrize("static", [False, True])
def test_a_quantized_model_through_the_decoder(static):
    model = quantize(tiny_model("llama"))
    decoder = ModuleDecoder(model, 32, static)
    for length in (5, 9):
        prompt = tiny_tokens(1, length)[0]
        assert written(decoder, prompt, NEW) == reference(model, prompt)
