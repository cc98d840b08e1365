"""The model's own modules as a decoder, against whole forwards without a cache."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.modules import ModuleDecoder
from tests.reading import ids, parts, read, read_all, read_last
from tests.tiny import VARIANTS, VOCAB, in_bfloat16, tiny_model, tiny_tokens

NEW = 12  # with the prompt, past the tiny models' sliding window of 8
WINDOWED = ("mistral", "gemma2", "gemma3_text", "gemma3")

_SIZES = dict(
    vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=128, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
_MAMBA = dict(_SIZES, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_chunk_size=8)
_QWEN3_NEXT = dict(
    _SIZES, head_dim=16, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
    linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=32, shared_expert_intermediate_size=32,
)  # fmt: skip
# Some of whose layers keep a state that cannot go back. RecurrentGemma's, Jamba's go on wrongly by more than one token;
# Bamba's positions, left to itself, start from 0 again in every call; Mamba keeps its state where no cache counts it.
RECURRENT = {
    "lfm2": dict(_SIZES, layer_types=["conv", "full_attention"]),
    "bamba": dict(_MAMBA, attn_layer_indices=[1]),
    "falcon_h1": dict(_MAMBA, mamba_d_ssm=128),
    "granitemoehybrid": dict(_MAMBA, layer_types=["mamba", "attention"], num_local_experts=0),
    "jamba": dict(_SIZES, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=4, mamba_d_state=8),
    "qwen3_next": _QWEN3_NEXT,
    "recurrent_gemma": dict(_SIZES, head_dim=16, attention_window_size=8, block_types=["recurrent", "attention"]),
    "mamba": dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, state_size=16),
    "rwkv": dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64),
}


def recurrent_model(model_type: str) -> torch.nn.Module:
    config = AutoConfig.for_model(model_type, **deepcopy(RECURRENT[model_type]))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def logits_without_cache(model, tokens: torch.Tensor) -> torch.Tensor:
    """`(length, vocabulary)`, the whole sequence read at once."""
    return model(tokens.unsqueeze(0), use_cache=False).logits[0]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 5e-5 * expected.abs().max()


def both():
    return pytest.mark.parametrize("static", [False, True], ids=["growing cache", "static cache"])


@both()
@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_logits_of_every_step_for_one_prompt_after_another(model_type, overrides, static):
    """The second prompt is shorter, the third longer: nothing of the one before may be left in the cache."""
    model = tiny_model(model_type, **overrides)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=static)
    for row, length in enumerate((10, 3, 17)):
        tokens = tiny_tokens(3, 17 + NEW)[row, : length + NEW]
        found = [read_last(decoder, tokens[:length])]
        found += [read_last(decoder, tokens[:stop], known=stop - 1) for stop in range(length + 1, len(tokens) + 1)]
        assert_close(torch.stack(found), logits_without_cache(model, tokens)[length - 1 :])


# (how much of the text before is known, how long the new one is): all of it and more, less than the window of 8, with
# another end, and a shorter one.
SECOND_TEXTS = ((30, 36), (30, 31), (20, 29), (11, 18), (5, 9), (1, 4))


@both()
@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_what_two_texts_begin_with_is_as_if_read_again(model_type, overrides, static):
    model = tiny_model(model_type, **overrides)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=static)
    first, second = tiny_tokens(2, 40)
    for known, length in SECOND_TEXTS:
        assert_close(read_all(decoder, first[:30]), logits_without_cache(model, first[:30]))
        text = torch.cat([first[:known], second[known:length]])
        found = read(decoder, text, known)
        assert_close(found, logits_without_cache(model, text)[known:])


def read_lengths(model) -> list[int]:
    """How many tokens each forward of a decoder reads, from now on."""
    lengths = []

    def note(module, arguments, named):
        if "input_ids" in named:
            lengths.append(named["input_ids"].shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    return lengths


@pytest.mark.parametrize(
    ("held", "known", "length", "read"), [(7, 5, 9, 4), (20, 5, 9, 9), (20, 19, 23, 23), (20, 20, 23, 3)]
)
@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_window_that_has_moved_on_is_not_cut_back_but_goes_on(model_type, held, known, length, read):
    model = tiny_model(model_type)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=False)
    first, second = tiny_tokens(2, 40)
    text = torch.cat([first[:known], second[known:length]])
    read_last(decoder, first[:held])
    lengths = read_lengths(model)
    found = read_last(decoder, text, known)
    assert lengths == [read]
    assert_close(found, logits_without_cache(model, text)[-1])


@both()
@pytest.mark.parametrize("model_type", RECURRENT)
def test_models_whose_state_cannot_go_back(model_type, static):
    model = recurrent_model(model_type)
    decoder = ModuleDecoder(model, max_tokens=40, static_cache=static)
    first, second = tiny_tokens(2, 40)
    for known, length in SECOND_TEXTS:
        read_last(decoder, first[:30])
        text = torch.cat([first[:known], second[known:length]])
        found = read(decoder, text, known)
        assert_close(found, logits_without_cache(model, text)[known:])
    stepped = [read_last(decoder, first[:10]), *(read_last(decoder, first[:n], n - 1) for n in range(11, 21))]
    assert_close(torch.stack(stepped), logits_without_cache(model, first[:20])[9:])


@both()
@pytest.mark.parametrize("model_type", [*RECURRENT, "dynamic"])
def test_two_texts_in_turn(model_type, static):
    """Each has its own past, though some modules keep what they read, or turn by angles of the longest text."""
    turned = dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0)
    dynamic = dict(rope_parameters=turned, max_position_embeddings=8)
    model = tiny_model("llama", **dynamic) if model_type == "dynamic" else recurrent_model(model_type)
    texts = tiny_tokens(2, 40)
    decoders = [ModuleDecoder(model, max_tokens=40, static_cache=static) for _ in texts]
    lengths = [30, 9]
    expected = [logits_without_cache(model, text[: length + 4]) for text, length in zip(texts, lengths, strict=True)]
    for step in range(4):
        for decoder, text, length, logits in zip(decoders, texts, lengths, expected, strict=True):
            found = read_last(decoder, text[: length + step], length + step - 1 if step else 0)
            if model_type != "dynamic":
                assert_close(found, logits[length + step - 1])
            else:
                assert_close(found, logits_without_cache(model, text[: length + step])[-1])


@both()
@pytest.mark.parametrize("rows", [1, 2, 9, 20])
def test_only_the_rows_asked_for(rows, static):
    model, text = tiny_model("llama"), tiny_tokens(1, 30)[0]
    decoder = ModuleDecoder(model, 40, static)
    expected = logits_without_cache(model, text)[-rows:]
    assert_close(read(decoder, text, rows=rows), expected)
    read_last(decoder, text[:10])
    assert_close(read(decoder, text, known=10, rows=rows), expected)


def test_logits_come_in_parts_of_float32():
    model, text = in_bfloat16(tiny_model("llama", max_position_embeddings=600)), tiny_tokens(1, 520)[0]
    found = parts(ModuleDecoder(model, 520, static_cache=False), text)
    assert [len(part) for part in found] == [256, 256, 8] and {part.dtype for part in found} == {torch.float32}
    expected = logits_without_cache(model, text).float()
    assert torch.cat(found).sub(expected).abs().max() < 2**-6 * expected.abs().max()


def test_the_static_cache_is_allocated_once(monkeypatch):
    import transformers

    made = []

    class Counted(transformers.StaticCache):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr("transformers.generation.utils.StaticCache", Counted)
    decoder = ModuleDecoder(tiny_model("llama"), max_tokens=32, static_cache=True)
    buffers = []
    for length in (4, 9):
        for stop in range(length, length + 3):
            read_last(decoder, tiny_tokens(1, 12)[0][:stop], known=0 if stop == length else stop - 1)
        buffers.append([(layer.keys.data_ptr(), tuple(layer.keys.shape)) for layer in made[0].layers])
    assert len(made) == 1 and buffers[0] == buffers[1] and buffers[0][0][1][2] == 32


@both()
def test_nothing_is_read_before_the_first_part_is_asked_for(static):
    model, text = tiny_model("llama"), tiny_tokens(1, 8)[0]
    lengths = read_lengths(model)
    found = ModuleDecoder(model, 32, static).read(ids(text))
    assert lengths == []
    next(found)
    assert lengths == [8]
