"""The token loop against transformers' own greedy generation."""

import pytest
import torch

from qlinear.backends.reference import ReferenceBackend
from qlinear.decoder import ModuleDecoder, generate
from qlinear.layer import QLinearPerGrp
from qlinear.packing import PackedWeight
from qlinear.replace import replace_linear
from qlinear.solvers import rtn
from scales.mappings import architecture_of, block_linears
from tests.tiny import VARIANTS, tiny_model, tiny_tokens

NEW = 12  # with the prompt, past the tiny models' sliding window of 8
NO_END = 10**6


def reference(model, prompt: torch.Tensor, new_tokens: int = NEW, end: int = NO_END) -> list[int]:
    """What `model.generate` writes after the prompt, greedily."""
    options = dict(max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=0, use_cache=True)
    ids = prompt.unsqueeze(0)
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


@torch.no_grad()
def logits_without_cache(model, tokens: torch.Tensor) -> torch.Tensor:
    """`(length, vocabulary)`, the whole sequence read at once."""
    return model(tokens.unsqueeze(0), use_cache=False).logits[0]


@pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static cache"])
@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_logits_of_every_step_for_one_prompt_after_another(model_type, overrides, static):
    """The second prompt is shorter, the third longer: nothing of the one before may be left in the cache."""
    model = tiny_model(model_type, **overrides)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=static)
    for row, length in enumerate((10, 3, 17)):
        tokens = tiny_tokens(3, 17 + NEW)[row, : length + NEW]
        expected = logits_without_cache(model, tokens)[length - 1 :]
        found = [decoder.prefill(tokens[:length]), *(decoder.step(int(token)) for token in tokens[length:])]
        assert (torch.stack(found) - expected).abs().max() < 5e-5 * expected.abs().max()


@pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static cache"])
@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_tokens_are_those_of_generate(model_type, overrides, static):
    model = tiny_model(model_type, **overrides)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=static)
    for row, length in enumerate((10, 3)):
        prompt = tiny_tokens(2, 10)[row, :length]
        assert generate(decoder, prompt, NEW).tokens == reference(model, prompt)


@pytest.mark.parametrize("static", [False, True])
def test_a_cache_of_just_the_size_needed(static):
    model, prompt = tiny_model("llama"), tiny_tokens(1, 6)[0]
    decoder = ModuleDecoder(model, max_tokens=6 + NEW, static_cache=static)
    assert generate(decoder, prompt, NEW).tokens == reference(model, prompt)


def test_the_static_cache_is_allocated_once():
    decoder = ModuleDecoder(tiny_model("llama"), max_tokens=32, static_cache=True)
    buffers = []
    for length in (4, 9):
        generate(decoder, tiny_tokens(1, length)[0], 3)
        buffers.append([(layer.keys.data_ptr(), tuple(layer.keys.shape)) for layer in decoder.cache.layers])
    assert buffers[0] == buffers[1] and buffers[0][0][1][2] == 32


@pytest.mark.parametrize("static", [False, True])
def test_it_stops_after_an_end_token(static):
    model, prompt = tiny_model("llama"), tiny_tokens(1, 6)[0]
    whole = reference(model, prompt)
    end = whole[4]
    expected = whole[: whole.index(end) + 1]
    decoder = ModuleDecoder(model, 32, static)
    assert generate(decoder, prompt, NEW, frozenset({end, 999})).tokens == expected
    assert reference(model, prompt, end=end) == expected


def test_an_end_token_that_comes_first():
    model, prompt = tiny_model("llama"), tiny_tokens(1, 6)[0]
    (first,) = reference(model, prompt, 1)
    found = generate(ModuleDecoder(model, 32, False), prompt, NEW, frozenset({first}))
    assert found.tokens == [first] and found.step_s == [] and found.ttft_s > 0


@pytest.mark.parametrize("count", [1, 2, 7])
def test_as_many_tokens_as_asked_for_and_a_time_for_each(count):
    found = generate(ModuleDecoder(tiny_model("llama"), 32, False), tiny_tokens(1, 6)[0], count)
    assert len(found.tokens) == count and len(found.step_s) == count - 1
    assert all(seconds > 0 for seconds in [found.ttft_s, *found.step_s])


def test_the_choice_of_a_token_is_the_callers():
    """The least likely token, each time: logits are float32 `(vocabulary,)`."""
    seen = []

    def choose(logits):
        seen.append((logits.dtype, tuple(logits.shape)))
        return int(logits.argmin())

    model, prompt = tiny_model("llama").to(torch.bfloat16), tiny_tokens(1, 6)[0]
    found = generate(ModuleDecoder(model, 32, False), prompt, 3, choose=choose)
    assert seen == [(torch.float32, (128,))] * 3
    tokens = prompt.tolist()
    for token in found.tokens:
        logits = logits_without_cache(model, torch.tensor(tokens))[-1]
        assert logits[token] <= logits.min() + 2**-6 * logits.abs().max()
        tokens.append(token)


def quantize(model, bits: int = 4) -> torch.nn.Module:
    architecture = architecture_of(model.config)
    for index, block in enumerate(model.get_submodule(architecture.blocks)):
        for name, linear in block_linears(block).items():
            bias = None if linear.bias is None else linear.bias.data
            layer = QLinearPerGrp(PackedWeight.pack(rtn(linear.weight.data, bits, 32)), bias)
            replace_linear(model, f"{architecture.blocks}.{index}.{name}", layer.prepare(ReferenceBackend("cpu/torch")))
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
        assert generate(decoder, prompt, NEW).tokens == reference(model, prompt)


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_what_two_texts_begin_with_is_read_once(model_type, overrides):
    """Logits after every token, of a whole text, of one with another end, and of a shorter one."""
    model = tiny_model(model_type, **overrides)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=False)
    first, second, _ = tiny_tokens(3, 30)
    for text, known in ((first, 0), (torch.cat([first[:20], second[:9]]), 20), (first[:18], 11)):
        expected = logits_without_cache(model, text)[known:]
        found = torch.cat(list(decoder.read(text, known)))
        assert (found - expected).abs().max() < 5e-5 * expected.abs().max()
