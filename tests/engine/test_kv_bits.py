"""A cache of int8 below whole models: what it holds, its bytes, and that a text's bits depend on nothing but it."""

from unittest import mock

import numpy as np
import pytest
import torch
from transformers import cache_utils

from qlinear.backends.cpu import native
from qlinear.backends.stack import Reading
from qlinear.backends.widths import Widths
from qlinear.errors import OptionError, TargetError
from tests.engine.fusing import distance, float_logits, quantized_on, stepped, tokens_of
from tests.engine.test_slots import interleaved, read
from tests.quantized import quantized, save_float
from tests.reading import read_all
from tests.tiny import VOCAB

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from engine.at_hand import StackRunner  # noqa: E402
from engine.parts import ModuleParts  # noqa: E402
from engine.stack import describe  # noqa: E402
from engine.whole import ModuleRunner, fused_decoder  # noqa: E402
from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402
from run_awq import load  # noqa: E402

LONG = dict(max_position_embeddings=1024)


def to_int8(states):
    """Rounded to integers of at most 127 times a scale, each head at each position its own."""
    scale = states.abs().amax(-1, keepdim=True) / 127
    return (states / scale).round() * scale


def logits_over_int8(exact, tokens):
    """Of transformers, with a cache that rounds what it is given."""
    plain = cache_utils.Cache.update

    def update(self, keys, values, *arguments, **options):
        return plain(self, to_int8(keys), to_int8(values), *arguments, **options)

    with mock.patch.object(cache_utils.Cache, "update", update):
        return float_logits(exact, tokens)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "cohere2", "olmo2", "phi3"])
def test_logits(isa, kind):
    """Rotated, normed, capped and in windows, as a prompt and token by token."""
    tokens, backend = tokens_of(50), CpuBackend(widths=Widths(kv=8))
    model, exact = quantized_on(backend, kind)
    decoder, reason = fused_decoder(model, backend, 64, 32)
    assert decoder is not None, reason
    found = read_all(decoder, tokens)
    assert distance(found, logits_over_int8(exact, tokens)) < 0.02
    assert torch.equal(stepped(decoder, tokens, 9), found[8:])
    plain = read_all(fused_decoder(model, CpuBackend(), 64, 32)[0], tokens)
    assert 5e-5 < distance(found, plain) < 0.02


def stack_of(model, max_tokens, chunk, slots, kv_bits=8):
    backend = CpuBackend(widths=Widths(kv=kv_bits))
    return backend.decoder(describe(model.config, ModuleParts(model), max_tokens), max_tokens, chunk, slots)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_in_any_company(isa, threads):
    """Longer than a split of positions, beside others, after a part that was taken back, and in a copied slot."""
    model, _ = quantized_on(CpuBackend(), "llama", **LONG)
    random = np.random.default_rng(0)
    texts = [random.integers(0, VOCAB, length) for length in (300, 17, 140)]
    stack = stack_of(model, 320, 40, 4)
    torch.set_num_threads(threads)
    try:
        found = interleaved(stack, texts, 1)
    finally:
        torch.set_num_threads(2)
    by_itself = stack_of(model, 320, 1, 1)
    alone = [read(by_itself, (texts[0][at : at + 1], at, 1, 0))[0] for at in range(300)]
    assert np.array_equal(found[0], np.concatenate(alone))

    read(stack, (texts[0][::-1][:20].copy(), 290, 20, 0))  # proposed, and taken back
    again = read(stack, (texts[0][290:], 290, 10, 0))[0]
    assert np.array_equal(again, found[0][290:])
    stack.copy(0, 3, 299)
    assert np.array_equal(read(stack, (texts[0][299:], 299, 1, 3))[0], found[0][299:])


@pytest.mark.parametrize("head_dim, kept", [(64, 68 / 128), (24, 36 / 64)])
def test_its_bytes(head_dim, kept):
    """A byte a feature, which are padded to a multiple of 16, and four for a scale."""
    model, _ = quantized_on(CpuBackend(), "llama", head_dim=head_dim)
    half, whole = (stack_of(model, 128, 16, 2, kv_bits) for kv_bits in (8, 16))
    assert half.nbytes / whole.nbytes == kept
    config = model.config
    width = -(-head_dim // 16) * 16
    assert whole.nbytes == config.num_hidden_layers * 2 * 2 * config.num_key_value_heads * 128 * width * 2


def test_what_it_holds_is_the_rounding_of_what_it_was_given():
    """The first value of the only token is all that its attention sees: taken apart, it is int8 times a scale."""
    model, _ = quantized_on(CpuBackend(), "llama")
    stack, plain = (stack_of(model, 128, 16, 1, kv_bits) for kv_bits in (8, 16))
    for one in (stack, plain):
        one.read([Reading(np.array([5]), 0, 0)], np.empty((0, VOCAB), np.float32))
    head_dim = model.config.head_dim
    width = -(-head_dim // 16) * 16
    exact = plain._cache[0, 1, 0, 0].view(np.uint16).reshape(-1, width, 2)[0, :head_dim, 0]
    exact = (exact.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    tile = stack._cache[0, 1, 0, 0, : 16 * (width + 4)]
    integers = tile[: 16 * width].view(np.int8).reshape(4, width, 4)[0, :head_dim, 0]
    scale = tile[16 * width :].view(np.float32)[0]
    assert scale == pytest.approx(np.abs(exact).max() / 127, rel=1e-6) and np.abs(integers).max() == 127
    assert np.abs(integers * float(scale) - exact).max() <= (1 / 2 + 1 / 256) * scale * 1.000001


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kv")
    return quantized(save_float(folder / "llama"), folder / "made", lm_head=True)


def test_every_way_to_open_it(checkpoint, monkeypatch):
    tokens = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(2))
    plain, exact = load(checkpoint, kv_bits=8), load(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr("checkpoints.at_hand.open_at_hand", lambda directory: 1 / 0)
        long = load(checkpoint, kv_bits=8)
    assert [type(model.runner) for model in (plain, long)] == [StackRunner, ModuleRunner]
    found = plain.logits(tokens)
    assert torch.equal(found, long.logits(tokens)) and not torch.equal(found, exact.logits(tokens))
    assert plain.about.code == long.about.code == f"cpu/{native.select_isa()} kv8"
    assert plain.kv_bytes == long.kv_bytes < exact.kv_bytes


def test_proposed_tokens_change_no_answer(checkpoint):
    drafted, plain = load(checkpoint, kv_bits=8, draft="lookup"), load(checkpoint, kv_bits=8)
    prompt = "w5 w9 w7 w5 w9 w7 w5 w9"
    answers = [list(model.stream(prompt, max_new_tokens=60)) for model in (drafted, plain)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("target", ["aie", "aie_emu", "cuda"])
def test_other_targets_refuse_it(checkpoint, target):
    with pytest.raises(TargetError) as refused:
        load(checkpoint, kv_bits=8, target=target)
    assert str(refused.value) == f"`kv_bits=8` runs on `target=cpu` only, not on {target}; use 16"


def test_what_is_no_cache_is_refused(checkpoint, monkeypatch):
    with pytest.raises(OptionError, match="^`kv_bits=4` is not one of 16, 8$"):
        load(checkpoint, kv_bits=4)
    with pytest.raises(OptionError, match="^`kv_bits=8` means nothing with `flash_attention=False`; leave one of them"):
        load(checkpoint, kv_bits=8, flash_attention=False)
    monkeypatch.setattr(native, "is_built", lambda: False)
    with pytest.raises(TargetError, match="^`kv_bits=8`: the native kernels are not built"):
        load(checkpoint, kv_bits=8)


def test_modules_refuse_it():
    """Of a model that is not run as a whole, or not asked to be."""
    model, _ = quantized_on(CpuBackend(widths=Widths(kv=8)), "llama")
    beyond = r"^`kv_bits=8` takes a model whose stack is run as a whole: .*; use 16$"
    with pytest.raises(TargetError, match=beyond):
        ModuleRunner(model, CpuBackend(widths=Widths(kv=8)), False).decoder(16, False, print)
    model.config.model_type = "gpt_oss"
    for make in (lambda runner: runner.decoder(16, False, print), lambda runner: runner.slots(16, 2, print)):
        with pytest.raises(TargetError, match="does not know gpt_oss models"):
            make(ModuleRunner(model, CpuBackend(widths=Widths(kv=8)), True))
