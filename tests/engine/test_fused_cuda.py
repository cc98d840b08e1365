"""The cuda target's fused decoder, its kernels on the CPU or a GPU, beside float32 and the cpu target's decoder."""

import pytest
import torch

from engine.whole import fused_decoder
from qlinear.backends.cpu import native
from tests.engine.fusing import distance, float_logits, quantized_on, stepped, tokens_of
from tests.qlinear.cuda.launchers import WHERE, backend_on
from tests.reading import generate, read_all, read_last
from tests.tiny import in_bfloat16, tiny_model

MODELS = [
    ("llama", {}),
    ("llama", dict(head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ("qwen3", {}),
    ("phi3", dict(num_key_value_heads=1, rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5))),
    ("gemma2", dict(attn_logit_softcapping=0.5, final_logit_softcapping=2.0)),
    ("gemma3_text", {}),
]
LONG = dict(max_position_embeddings=1024)


@pytest.fixture(scope="module", params=WHERE)
def backend(request):
    return backend_on(request.param)


def fused(model, backend, max_tokens=128, chunk=32):
    decoder, reason = fused_decoder(model, backend, max_tokens, chunk)
    assert decoder is not None, reason
    return decoder


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("model_type, options", MODELS, ids=lambda value: str(value)[:40])
def test_logits_are_the_models_own(backend, model_type, options, bits):
    model, exact = quantized_on(backend, model_type, bits, **options)
    tokens = tokens_of(40)
    expected, decoder = float_logits(exact, tokens), fused(model, backend)
    assert distance(read_all(decoder, tokens).cpu(), expected) < 0.012
    assert distance(stepped(decoder, tokens, 33).cpu(), expected[32:]) < 0.014


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2"])
@pytest.mark.skipif(not native.is_built(), reason=native.HOW_TO_BUILD)
def test_logits_are_those_of_the_cpu_target(backend, model_type):
    from qlinear.backends.cpu.backend import CpuBackend

    tokens = tokens_of(40)
    ours = stepped(fused(quantized_on(backend, model_type)[0], backend), tokens, 33).cpu()
    cpu = CpuBackend()
    theirs = stepped(fused(quantized_on(cpu, model_type)[0], cpu), tokens, 33)
    assert distance(ours, theirs) < 0.01


@pytest.mark.parametrize("model_type, window", [("llama", 0), ("mistral", 100)])
def test_long_pasts_and_windows(backend, model_type, window):
    """A token's attention is computed in splits of 128 positions, put together by the one that is done last."""
    options = dict(LONG, sliding_window=window) if window else LONG
    model, exact = quantized_on(backend, model_type, **options)
    tokens = tokens_of(300)
    expected, decoder = float_logits(exact, tokens), fused(model, backend, 300, chunk=200)
    assert distance(read_all(decoder, tokens).cpu(), expected) < 0.012
    for start in (127, 296):
        assert distance(stepped(decoder, tokens[: start + 4], start).cpu(), expected[start - 1 : start + 4]) < 0.014


def test_the_same_token_gives_the_same_bits(backend):
    model, _ = quantized_on(backend, "gemma2", **LONG)
    decoder, tokens = fused(model, backend, 300, chunk=200), tokens_of(280)
    first = stepped(decoder, tokens, 277)
    assert torch.equal(stepped(decoder, tokens, 277), first)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_layers_need_be_neither_joined_nor_quantized(backend, model_type):
    tokens = tokens_of(36)
    separate, exact = quantized_on(backend, model_type, join=False, head=False)
    decoder = fused(separate, backend)
    assert distance(stepped(decoder, tokens, 33).cpu(), float_logits(exact, tokens)[32:]) < 0.014
    plain = in_bfloat16(tiny_model(model_type))
    expected = float_logits(tiny_model(model_type).bfloat16().float(), tokens)
    decoder = fused(plain.to(backend.device), backend)
    assert distance(stepped(decoder, tokens, 33).cpu(), expected[32:]) < 0.014


def test_greedy_tokens_are_those_of_the_model(backend):
    """Where float32 is sure of a token, that is the token; 5% of the logits' spread is far above bfloat16's noise."""
    model, exact = quantized_on(backend, "llama")
    prompt = tokens_of(12)
    written = torch.tensor([token.id for token in generate(fused(model, backend), prompt, 24)])
    expected = float_logits(exact, torch.cat([prompt, written]))[len(prompt) - 1 : -1]
    best = expected.topk(2)
    sure = (best.values[:, 0] - best.values[:, 1]) > 0.05 * expected.std()
    assert sure.sum() > 10
    assert torch.equal(best.indices[sure, 0], written[sure])


def test_weights_are_held_once(backend):
    """The decoder reads the layers' own memory."""
    model, _ = quantized_on(backend, "llama")
    decoder, tokens = fused(model, backend), tokens_of(8)
    read_last(decoder, tokens)
    before = read_last(decoder, tokens, 7).clone()
    model.model.layers[0].mlp.down_proj.prepared.packed.zero_()
    assert not torch.equal(read_last(decoder, tokens, 7), before)
    assert decoder.stack.nbytes == 2 * 2 * 2 * 128 * 16 * 2  # layers, keys, values, heads, positions, features, bytes


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(hidden_act="relu"), "does not know the activation relu"),
        (dict(head_dim=20), "up to 256 features, a multiple of 8; this model has 20"),
        (dict(hidden_size=60, head_dim=8), "a hidden size of up to 8192, a multiple of 8; this model has 60"),
    ],
)
def test_what_it_cannot_run_it_says(options, reason):
    on_cpu = backend_on("cpu")
    decoder, why = fused_decoder(in_bfloat16(tiny_model("llama", **options)), on_cpu, 128)
    assert decoder is None and reason in why


@pytest.mark.parametrize(
    "model_type, reason",
    [
        ("mixtral", "mixtures of experts"),
        ("ernie4_5_moe", "mixtures of experts"),
        ("olmoe", "mixtures of experts"),
        ("glm4", "does not turn neighbouring features"),
        ("olmo3", "takes blocks with RMS norms before attention and MLP"),
        ("exaone4", "takes blocks with RMS norms before attention and MLP"),
        ("cohere2", "does not run attention and MLP side by side"),
        ("stablelm", "takes blocks with RMS norms before attention and MLP"),
        ("hunyuan_v1_dense", "does not norm heads after the rotation"),
        ("apertus", "takes gated MLPs"),
    ],
)
def test_stacks_that_only_the_cpu_runs(model_type, reason):
    decoder, why = fused_decoder(in_bfloat16(tiny_model(model_type)), backend_on("cpu"), 128)
    assert decoder is None and reason in why


def test_what_is_not_bfloat16_it_says():
    decoder, why = fused_decoder(tiny_model("llama"), backend_on("cpu"), 128)
    assert decoder is None and "runs bfloat16 on cpu; the embedding is torch.float32" in why


def test_gate_and_up_of_no_whole_tiles():
    on_cpu = backend_on("cpu")
    model, _ = quantized_on(on_cpu, "llama", intermediate_size=136)
    decoder, why = fused_decoder(model, on_cpu, 128)
    assert decoder is None and "a multiple of 16 rows, alike in bits and groups; this model's have 136" in why
