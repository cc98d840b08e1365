"""The fused decoder against the model's own modules, for every architecture it knows."""

import copy
import re

import pytest
import torch

from architectures.registry import fused_families
from engine.scoring import negative_log_likelihood
from qlinear.backends.cpu import native
from qlinear.backends.reference import ReferenceBackend
from qlinear.errors import ModelError, TargetError
from tests.engine.fusing import distance, float_logits, quantized_on, stepped, tokens_of
from tests.reading import generate, ids, parts, read, read_all, read_last
from tests.tiny import FOUND_OUT_TYPES, FOUND_OUT_VARIANTS, VARIANTS, VOCAB, in_bfloat16, tiny_model

try:
    AVAILABLE = native.available_isas()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

from engine.whole import fused_decoder  # noqa: E402
from qlinear.backends.cpu.backend import CpuBackend  # noqa: E402

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "granite", "starcoder2")
LLAMAS = ("ministral", "seed_oss", "ernie4_5", "cwm", "internlm3", "helium", "smollm3")
KNOWN = [one for one in VARIANTS + FOUND_OUT_VARIANTS if one[0] in (*FAMILIES, *LLAMAS, *FOUND_OUT_TYPES)]
# The usual 50 and 30 change nothing tiny; a Llama does not read either.
CAPS = dict(attn_logit_softcapping=0.5, final_logit_softcapping=2.0)
WIDE_EPSILON = dict(rms_norm_eps=0.5)  # the usual 1e-6 hides what a residual's multiplier makes of it
LONG = dict(max_position_embeddings=1024)
REFERENCE = ReferenceBackend("cpu/torch")


def quantized(model_type, bits=4, head=True, join=True, backend=None, **options):
    return quantized_on(backend or CpuBackend(), model_type, bits, head, join, **options)


def fused(model, max_tokens=128, chunk=32):
    decoder, reason = fused_decoder(model, CpuBackend(), max_tokens, chunk)
    assert decoder is not None, reason
    return decoder


def assert_as_good_as_modules(logits, module_logits, expected):
    """No further from float32 than bfloat16 modules are; a wrong operation is off by 10% and more."""
    assert distance(logits, expected) < 1.15 * distance(module_logits, expected) + 1e-3 < 0.04


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(
    "model_type, options",
    [*KNOWN, ("gemma2", CAPS), ("llama", CAPS), ("granite", WIDE_EPSILON)],
    ids=lambda value: str(value)[:60],
)
def test_logits_of_every_architecture(model_type, options, bits):
    tokens = tokens_of(70)
    modules, exact = quantized(model_type, bits, join=False, backend=REFERENCE, **options)
    expected = float_logits(exact, tokens)
    module_logits = float_logits(modules, tokens).float()
    decoder = fused(quantized(model_type, bits, **options)[0])
    assert_as_good_as_modules(read_all(decoder, tokens), module_logits, expected)
    assert_as_good_as_modules(stepped(decoder, tokens, 30), module_logits[29:], expected[29:])


def test_every_family_with_fused_traits_is_among_them():
    dense = {model_type for model_type, family in fused_families().items() if family.fused.experts is None}
    assert dense == {*FAMILIES, *LLAMAS, *FOUND_OUT_TYPES} == {model_type for model_type, _ in KNOWN}


@pytest.mark.parametrize("model_type", (*FAMILIES, *FOUND_OUT_TYPES))
def test_greedy_tokens_are_those_of_the_model(model_type):
    """Where float32 is sure of a token, that is the token; 5% of the logits' spread is far above bfloat16's noise."""
    model, exact = quantized(model_type)
    prompt = tokens_of(12)
    written = torch.tensor([token.id for token in generate(fused(model), prompt, 40)])
    expected = float_logits(exact, torch.cat([prompt, written]))[len(prompt) - 1 : -1]
    best = expected.topk(2)
    sure = (best.values[:, 0] - best.values[:, 1]) > 0.05 * expected.std()
    assert sure.sum() > 20
    assert torch.equal(best.indices[sure, 0], written[sure])


@pytest.mark.parametrize("length", [1, 2, 40])
def test_caps_do_not_hide_what_is_no_number(length):
    model, _ = quantized("gemma2", **CAPS)
    model.model.embed_tokens.weight.data[7] = float("nan")
    with pytest.raises(ModelError, match="the model's logits are not finite"):
        read_all(fused(model), torch.full((length,), 7))


def test_a_text_that_failed_is_not_gone_on_with():
    """Nor after one that was interrupted: what the cache holds of it nobody knows."""
    decoder, tokens = fused(quantized("llama")[0]), tokens_of(6)
    expected = read_last(decoder, tokens).clone()
    decoder.stack.read, read = lambda *_: 1 / 0, decoder.stack.read
    with pytest.raises(ZeroDivisionError):
        read_last(decoder, tokens, known=3)
    decoder.stack.read = read
    with pytest.raises(ValueError, match="of 6 and of 0 read before"):
        read_last(decoder, tokens, known=3)
    assert torch.equal(read_last(decoder, tokens), expected)


@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("head", [True, False], ids=["head", "dense-head"])
def test_every_instruction_set(isa, head):
    if isa not in AVAILABLE:
        pytest.skip(f"this machine has no {isa}")
    native.select_isa(isa)
    try:
        model, exact = quantized("llama", head=head, tie_word_embeddings=not head)
        tokens = tokens_of(50)
        expected = float_logits(exact, tokens)
        decoder = fused(model)
        assert distance(stepped(decoder, tokens, 9), expected[8:]) < 0.012
        assert distance(read_all(decoder, tokens), expected) < 0.012
    finally:
        native.select_isa("")


@pytest.mark.parametrize("model_type, window", [("llama", 0), ("mistral", 100), ("gemma3_text", 300)])
def test_long_pasts_and_windows(model_type, window):
    """A token's attention is computed in pieces of 256 positions, a prompt's in steps of 128 and chunks."""
    options = dict(LONG, sliding_window=window) if window else LONG
    model, exact = quantized(model_type, **options)
    tokens = tokens_of(560)
    expected = float_logits(exact, tokens)
    decoder = fused(model, 560, chunk=200)
    assert distance(read_all(decoder, tokens), expected) < 0.012
    for start in (250, 505):
        assert distance(stepped(decoder, tokens[: start + 20], start), expected[start - 1 : start + 20]) < 0.012


@pytest.mark.parametrize("chunk", [1, 2, 13, 31, 64])
def test_chunks_do_not_show(chunk):
    model, _ = quantized("qwen3")
    tokens = tokens_of(64)
    whole = read_all(fused(model, chunk=128), tokens)
    assert torch.equal(read_all(fused(model, chunk=chunk), tokens), whole)


def test_a_new_prompt_forgets_the_last():
    decoder = fused(quantized("llama")[0])
    first = read_last(decoder, tokens_of(20)).clone()
    read_last(decoder, tokens_of(90, seed=1))
    assert torch.equal(read_last(decoder, tokens_of(20)), first)


def test_same_bits_at_any_number_of_threads():
    model, _ = quantized("gemma2", **LONG)
    tokens = tokens_of(300)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            decoder = fused(model, 400, chunk=128)
            results.append([read_all(decoder, tokens), stepped(decoder, torch.cat([tokens, tokens[:8]]), 300)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("length", [2, 32, 33, 100])
def test_negative_log_likelihood(length):
    """Of the float32 model's logits, in float64; as many nats a token off as bfloat16's noise in the logits makes."""
    model, exact = quantized("gemma2", **LONG, **CAPS)
    tokens = tokens_of(length)
    logits = float_logits(exact, tokens)[:-1].double()
    chosen = logits.gather(1, tokens[1:].unsqueeze(1)).squeeze(1)
    expected = (logits.exp().sum(dim=1).log() - chosen).sum().item()
    found = negative_log_likelihood(fused(model), ids(tokens))
    noise = 0.012 * logits.square().mean().sqrt().item()
    assert abs(found - expected) < 4 * noise * (length - 1) ** 0.5
    assert 4 * noise < 0.05 * expected / (length - 1)


def test_layers_need_be_neither_joined_nor_quantized():
    tokens = tokens_of(40)
    separate, exact = quantized("qwen2", join=False)
    assert distance(read_all(fused(separate), tokens), float_logits(exact, tokens)) < 0.012
    plain = in_bfloat16(tiny_model("qwen2"))
    assert distance(read_all(fused(plain), tokens), float_logits(copy.deepcopy(plain).float(), tokens)) < 0.012


def test_scaled_rotations_are_those_of_the_model():
    scaled = dict(
        rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )  # fmt: skip
    model, exact = quantized("llama", rope_parameters=scaled)
    tokens = tokens_of(100)
    assert distance(read_all(fused(model), tokens), float_logits(exact, tokens)) < 0.012


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: in_bfloat16(tiny_model("opt")), "does not know opt models"),
        (lambda: tiny_model("llama"), "runs bfloat16; a linear layer is float32"),
        (lambda: in_bfloat16(tiny_model("llama", hidden_act="relu")), "activation relu"),
        (lambda: in_bfloat16(tiny_model("llama", head_dim=288)), "up to 256 features"),
        (
            lambda: in_bfloat16(tiny_model("cohere", use_qk_norm=True)),
            r"has a layer norm of its own for every head of q and k \(`use_qk_norm` is True\)",
        ),
        (lambda: in_bfloat16(tiny_model("stablelm", qk_layernorm=True)), r"\(`qk_layernorm` is True\)"),
        (lambda: quantized("llama", backend=REFERENCE)[0], "native cpu kernels"),
        (
            lambda: in_bfloat16(
                tiny_model("llama", max_position_embeddings=64, rope_parameters=dict(rope_type="dynamic", factor=2.0))
            ),
            "dynamic rotation changes beyond 64 tokens",
        ),
    ],
)
def test_what_it_cannot_run_it_says(model, reason):
    decoder, why = fused_decoder(model(), CpuBackend(), 128)
    assert decoder is None
    assert re.search(reason, why)


def test_a_backend_without_a_decoder_says_so():
    decoder, why = fused_decoder(quantized("llama", backend=REFERENCE)[0], REFERENCE, 128)
    assert decoder is None and "needs the native cpu kernels" in why


def test_refuses_tokens_it_cannot_read():
    decoder = fused(quantized("llama")[0], 16)
    with pytest.raises(ValueError, match="17 tokens: the decoder reads 1 to 16"):
        read_last(decoder, tokens_of(17))
    with pytest.raises(ValueError, match="1 to 16"):
        read_last(decoder, tokens_of(0))
    for wrong in (-1, VOCAB):
        with pytest.raises(ValueError, match=rf"token ids have to be in \[0, {VOCAB}\)"):
            read_last(decoder, torch.tensor([1, wrong]))
    for known in (-1, 5, 6):
        with pytest.raises(ValueError, match=f"{known} tokens are said to be known, of 5 and of 0 read before"):
            read_last(decoder, tokens_of(5), known)
    read_last(decoder, tokens_of(5))
    with pytest.raises(ValueError, match="6 tokens are said to be known, of 9 and of 5 read before"):
        read_last(decoder, tokens_of(9), 6)


def test_weights_are_held_once():
    """The decoder reads the layers' own memory."""
    model, _ = quantized("llama")
    decoder = fused(model)
    packed = model.model.layers[0].mlp.down_proj.prepared.packed
    before = read_last(decoder, tokens_of(8)).clone()
    packed[:64] = 0  # the scales of 32 outputs
    assert not torch.equal(read_last(decoder, tokens_of(8)), before)
    assert decoder.stack.nbytes == 2 * 2 * 2 * 128 * 16 * 2  # layers, keys, values, heads, positions, features, bytes


@pytest.mark.parametrize("rows", [1, 5, 32, 33, 70])
def test_only_the_rows_asked_for(rows):
    """However they lie to the chunks of 32 that the text is read in."""
    decoder, tokens = fused(quantized("qwen3")[0]), tokens_of(70)
    whole = read_all(decoder, tokens)
    found = parts(decoder, tokens, rows=rows)
    assert max(map(len, found)) <= 32
    assert torch.equal(torch.cat(found), whole[-rows:])


@pytest.mark.parametrize("known", [1, 31, 32, 50])
def test_what_two_texts_begin_with_is_read_once(known):
    model, exact = quantized("gemma2", **LONG)  # with a sliding window
    decoder = fused(model)
    first, second = tokens_of(80), torch.cat([tokens_of(80)[:known], tokens_of(40, seed=1)])
    for rows in decoder.read(first):
        assert rows.shape[0] <= 32
    found = read(decoder, second, known)
    assert distance(found, float_logits(exact, second)[known:]) < 0.012
