"""The fused decoder on shapes that real models have, and at the edges of its chunks, its cache and its threads."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.fused import CHUNK
from engine.parts import ModuleParts
from engine.stack import describe
from qlinear.backends.cpu.backend import CpuBackend
from qlinear.backends.cpu.limits import check
from qlinear.backends.stack import Reading, Unsupported
from tests.engine.test_fused import distance, float_logits, fused, fused_decoder, quantized, stepped, tokens_of
from tests.reading import generate, ids, parts, read_all
from tests.tiny import VOCAB, in_bfloat16, tiny_model

LONG = dict(max_position_embeddings=1024)


def assert_right(model_type: str, **options) -> None:
    """A prompt at once and token by token, against the float32 model of the same weights."""
    model, exact = quantized(model_type, **options)
    tokens = tokens_of(40)
    expected, decoder = float_logits(exact, tokens), fused(model)
    assert distance(read_all(decoder, tokens), expected) < 0.012
    assert distance(stepped(decoder, tokens, 20), expected[19:]) < 0.012


@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 160, 192, 256])
def test_sizes_of_a_head(head_dim):
    assert_right("llama", head_dim=head_dim)


@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (14, 2), (64, 1), (5, 5), (12, 4)])
def test_queries_that_share_a_key(heads, kv_heads):
    assert_right("qwen2", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=32)


@pytest.mark.parametrize("vocabulary", [VOCAB + 1, VOCAB + 3, VOCAB + 7, 257, 1000])
@pytest.mark.parametrize("head", [True, False], ids=["head", "dense-head"])
def test_vocabularies_of_any_size(vocabulary, head):
    model, exact = quantized("llama", vocab_size=vocabulary, head=head)
    tokens = torch.randint(0, vocabulary, (30,), generator=torch.Generator().manual_seed(0))
    tokens[-1] = vocabulary - 1
    found = read_all(fused(model), tokens)
    assert found.shape == (30, vocabulary) and distance(found, float_logits(exact, tokens)) < 0.012


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_texts_that_end_where_a_chunk_does(length):
    """In the chunks that a model's decoder has, in a cache that the text fills."""
    model, exact = quantized("llama", **LONG)
    tokens = tokens_of(length)
    expected = float_logits(exact, tokens)
    decoder, reason = fused_decoder(model, CpuBackend(), length)
    assert decoder is not None, reason
    assert distance(read_all(decoder, tokens), expected) < 0.012
    found = parts(decoder, tokens, rows=3)
    assert distance(torch.cat(found), expected[-3:]) < 0.012
    assert distance(stepped(decoder, tokens, length - 2), expected[-3:]) < 0.012


@pytest.mark.parametrize("prompt", [12, CHUNK])
def test_an_answer_that_fills_the_cache(prompt):
    """The last token is not read: there is no room for it, and none is needed."""
    model, new = quantized("qwen3", **LONG)[0], 9
    roomy = [token.id for token in generate(fused(model, 512), tokens_of(prompt), new)]
    exactly = fused(model, prompt + new - 1)
    assert [token.id for token in generate(exactly, tokens_of(prompt), new)] == roomy
    with pytest.raises(ValueError, match=f"^{prompt + new} tokens: the decoder reads 1 to {prompt + new - 1}$"):
        list(generate(exactly, tokens_of(prompt), new + 1))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_bits_wherever_the_process_may_run(threads):
    """On one processor with more threads than that, too."""
    allowed, before, tokens = os.sched_getaffinity(0), torch.get_num_threads(), tokens_of(70)
    model, _ = quantized("gemma2")
    expected = stepped(fused(model), tokens, 60)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        torch.set_num_threads(threads)
        assert torch.equal(stepped(fused(model), tokens, 60), expected)
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(before)


def test_the_stack_reads_nothing_that_it_has_no_room_for():
    """Whoever calls it: native code would."""
    stack = fused(quantized("llama")[0], 64, chunk=16).stack
    logits, room = np.empty((2, VOCAB), np.float32), "there are 1 slots of 64 positions"
    shape = rf"float32 \(2, {VOCAB}\) in one piece are asked for"
    stack.read([Reading(ids(tokens_of(16)), 48, 2)], logits)
    for tokens, position, out, message in (
        (ids(tokens_of(17)), 0, logits, "17 tokens of 1 texts: 16 at a time"),
        (ids(tokens_of(0)), 0, logits, "0 tokens of 1 texts: 16 at a time"),
        (ids(tokens_of(16)), 49, logits, f"16 tokens at position 49 of slot 0: {room}"),
        (ids(tokens_of(4)), -1, logits, f"4 tokens at position -1 of slot 0: {room}"),
        (ids(tokens_of(1)), 0, logits, "2 rows of 1 tokens are asked for"),
        (ids(tokens_of(4)), 0, np.empty((2, VOCAB - 1), np.float32), rf"logits \(2, 127\): {shape}"),
        (ids(tokens_of(4)), 0, np.empty((2, VOCAB), np.float16), rf"logits \(2, 128\): {shape}"),
        (ids(tokens_of(4)), 0, np.empty((VOCAB, 2), np.float32).T, rf"logits \(2, 128\): {shape}"),
        (ids(tokens_of(4)).astype(np.int32), 0, logits, "tokens have to be int64, in one piece"),
        (ids(tokens_of(8))[::2], 0, logits, "tokens have to be int64, in one piece"),
        (ids([1, VOCAB]), 0, logits, rf"token ids have to be in \[0, {VOCAB}\)"),
        (ids([-1, 1]), 0, logits, rf"token ids have to be in \[0, {VOCAB}\)"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            stack.read([Reading(tokens, position, 2)], out)


def test_an_embedding_of_another_size_than_the_head():
    model = in_bfloat16(tiny_model("llama", tie_word_embeddings=False))
    model.resize_token_embeddings(VOCAB + 8)
    model.lm_head = torch.nn.Linear(64, VOCAB + 16, bias=False, dtype=torch.bfloat16)
    decoder, reason = fused_decoder(model, CpuBackend(), 32)
    assert decoder is None and reason == (
        f"the fused decoder takes as many embeddings as outputs; this model has {VOCAB + 8} and {VOCAB + 16}"
    )


@pytest.mark.parametrize(("changes", "reason"), [
    (dict(heads=6, kv_heads=4), "as many query heads for each of 4 key heads"),
    (dict(blocks=()), "a model of blocks, of which this one has none"),
])  # fmt: skip
def test_what_native_code_would_not_look_at_is_refused(changes, reason):
    model, _ = quantized("llama", num_attention_heads=4, num_key_value_heads=2)
    stack = describe(model.config, ModuleParts(model), 8)
    with pytest.raises(Unsupported, match=reason):
        check(replace(stack, **changes))


@pytest.mark.parametrize("width", [0.5, 1.5, 10])
def test_rotations_as_wide_as_a_head_and_alike(width):
    """width: of the last block's over the first's."""
    model, _ = quantized("llama")
    stack = describe(model.config, ModuleParts(model), 8)
    first, last = stack.blocks[0], stack.blocks[-1]
    tables = {name: np.ones((8, int(width * first.cosines.shape[1])), np.float32) for name in ("cosines", "sines")}
    with pytest.raises(Unsupported, match="turns as many features in all blocks"):
        check(replace(stack, blocks=(*stack.blocks[:-1], replace(last, **tables))))
    if width > 1:
        with pytest.raises(Unsupported, match="block 0: the fused decoder turns as many features"):
            check(replace(stack, blocks=[replace(block, **tables) for block in stack.blocks]))


def test_a_model_with_code_of_its_own_runs_that(monkeypatch):
    model, _ = quantized("llama")
    assert fused_decoder(model, CpuBackend(), 8)[0] is not None
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.mine.modeling")
    assert fused_decoder(model, CpuBackend(), 8) == (None, "the model brings code of its own, which runs as it is")
