"""What GGUF headers say of the families: a file of each computes what the model did that it was made of."""

import numpy
import pytest
import torch

from checkpoints.pretrained import open_pretrained
from run_awq import export, load
from tests.checkpoints.ggufs import refused, tiny_model, write_gguf
from tests.checkpoints.test_gguf_export import checkpoint

SWA = {"attention.sliding_window": 4}
CAPS = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 9.0}
GEMMA = dict(query_pre_attn_scalar=8, sliding_window=4, tie_word_embeddings=True)
OWN_BASES = dict(full_attention={"rope_type": "default", "rope_theta": 5000.0},
                 sliding_attention={"rope_type": "default", "rope_theta": 300.0})  # fmt: skip
SLIDING_FULL = ("sliding_attention", "full_attention")
THIN_HEADS = dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)
LINEAR = dict(rope_type="linear", rope_theta=5000.0, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=5000.0, factor=4.0, original_max_position_embeddings=4096, beta_fast=4.0)
LONG = dict(rope_type="longrope", rope_theta=5000.0, short_factor=[1.0, 1.5, 2.0, 2.5],
            long_factor=[2.0, 3.0, 4.0, 5.0], original_max_position_embeddings=16, attention_factor=1.25)  # fmt: skip
LLAMA_3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=48)  # fmt: skip


def divisors_of_llama_3(original=48, factor=8.0, low=1.0, high=4.0) -> numpy.ndarray:
    """Of the four frequencies of a head of eight: by wavelengths, as its authors' code has it."""
    found = []
    for i in range(4):
        wave = 2 * numpy.pi * 500 ** (i / 4)
        blend = (original / wave - low) / (high - low)
        slowed = 1 / ((1 - blend) / factor + blend)
        found.append(1 if wave < original / high else factor if wave > original / low else slowed)
    return numpy.array(found, numpy.float32)


OTHERS = [
    ("gemma", dict(tie_word_embeddings=True), {}, {}),
    ("gemma2", dict(GEMMA, attn_logit_softcapping=20.0, final_logit_softcapping=9.0), SWA | CAPS, {}),
    ("gemma3_text", dict(GEMMA, num_hidden_layers=7, rope_parameters=OWN_BASES),
     SWA | {"rope.freq_base_swa": 300.0}, {}),
    ("gemma3_text", dict(GEMMA, num_hidden_layers=4, rope_parameters=OWN_BASES, layer_types=[*2 * SLIDING_FULL]),
     SWA | {"rope.freq_base_swa": 300.0, "attention.sliding_window_pattern": 2}, {}),
    ("gemma3_text", dict(GEMMA, num_hidden_layers=3, rope_parameters=OWN_BASES,
                         layer_types=[*SLIDING_FULL, SLIDING_FULL[1]]),
     SWA | {"rope.freq_base_swa": 300.0, "attention.sliding_window_pattern": [True, False, False]}, {}),
    ("phi3", dict(sliding_window=4), SWA, {}),
    ("phi3", dict(sliding_window=None, rope_parameters=THIN_HEADS),
     {"attention.sliding_window": 0, "rope.dimension_count": 4}, {}),
    ("phi3", dict(sliding_window=None, rope_parameters=LONG, original_max_position_embeddings=16),
     {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25},
     {"rope_factors_short.weight": numpy.array(LONG["short_factor"], numpy.float32),
      "rope_factors_long.weight": numpy.array(LONG["long_factor"], numpy.float32)}),
    ("smollm3", dict(num_hidden_layers=5, no_rope_layer_interval=4), {}, {}),
    ("llama", dict(rope_parameters=LINEAR), {"rope.scaling.factor": 4.0}, {}),
    ("qwen2", dict(rope_parameters=YARN),
     {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 4096,
      "rope.scaling.yarn_beta_fast": 4.0}, {}),
    ("llama", dict(rope_parameters=LLAMA_3), {"rope.freq_base": 500.0}, {"rope_freqs.weight": divisors_of_llama_3()}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "header", "tables"), OTHERS)
def test_a_family_as_llama_cpp_has_it(family, changes, header, tables, tmp_path):
    """Over positions beyond windows and first contexts; norms with 1 added have lost up to eight bits of theirs."""
    model = tiny_model(family, pad_token_id=None, **changes)
    opened = open_pretrained(str(write_gguf(tmp_path / "m.gguf", model, tables, header=header)))
    ids = torch.arange(2, 42)[None]
    with torch.no_grad():
        found, expected = opened.load(torch.float32)(ids).logits, model.float()(ids).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    rope = changes.get("rope_parameters", {})
    numbers = {name: value for name, value in rope.items() if isinstance(value, float | int)}
    assert {name: opened.config.rope_parameters.get(name) for name in numbers} == pytest.approx(numbers, rel=1e-5)


def test_a_table_of_frequencies_that_is_not_llama_3s(tmp_path):
    factors = {"rope_freqs.weight": numpy.array([1, 3, 2, 8], numpy.float32)}
    path = write_gguf(tmp_path / "f.gguf", tiny_model("llama"), extra=factors)
    refused(path, "that is not Llama 3.1's; give the model's safetensors directory")


@pytest.mark.parametrize(("header", "told"), [
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.5}, "yarn"),
    ({"rope.scaling.type": "longrope"}, "longrope, and its tables"),
    ({"rope.scaling.type": "sideways"}, "sideways"),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_log_multiplier": 0.1},
     "yarn_log_multiplier"),
])  # fmt: skip
def test_a_scaling_that_is_not_known(header, told, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), header=header)
    refused(path, f"scales its rotary positions in a way that is not known ({told}); give the model's safetensors")


@pytest.mark.parametrize("family, window", [("gemma2", 4096), ("gemma3_text", 4096), ("phi3", None)])
def test_a_window_of_which_nothing_is_said_is_the_familys(family, window, tmp_path):
    """The first files of these models have none in their header, and llama.cpp's own default."""
    path = write_gguf(tmp_path / "m.gguf", tiny_model(family, pad_token_id=None))
    assert open_pretrained(str(path)).config.sliding_window == window


@pytest.mark.parametrize("family, header, told", [
    ("llama", {"attention.scale": 0.5}, "llama.attention.scale of 0.5"),
    ("llama", {"rope.dimension_count": 4}, "llama.rope.dimension_count of 4"),
    ("llama", {"rope.scale_linear": 2.0}, "llama.rope.scale_linear of 2"),
    ("llama", {"attn_logit_softcapping": 30.0}, "llama.attn_logit_softcapping of 30"),
    ("llama", {"residual_scale": 0.25}, "llama.residual_scale of 0.25"),
    ("qwen3", {"attention.value_length": 4}, "qwen3.attention.value_length of 4"),
    ("llama", {"expert_count": 8}, "llama.expert_count of 8"),
])  # fmt: skip
def test_a_setting_that_would_come_to_nothing(family, header, told, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_model(family), header=header)
    refused(path, f"has a setting {told}, with which this program does not run such a model; give the model's")


@pytest.mark.parametrize(
    "header",
    [
        {"attention.scale": 8**-0.5, "expert_count": 0, "rope.scale_linear": 1.0},
        {"logit_scale": 0.0, "rope.dimension_count": 8, "attention.value_length": 8},
    ],
)
def test_a_setting_that_asks_for_nothing(header, tmp_path):
    assert open_pretrained(str(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), header=header))).load()


def test_whatever_ends_a_turn_ends_an_answer(tmp_path):
    made = checkpoint(tmp_path)
    (made / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    export(made, tmp_path / "m.gguf", "gguf")
    assert load(made).end_tokens == load(tmp_path / "m.gguf").end_tokens == {2, 5}


@pytest.mark.parametrize("named, ends", [
    ({}, 7),
    ({9: "<|im_end|>"}, [7, 9]),
    ({7: "<|endoftext|>", 9: "<end_of_turn>", 3: "<|eot_id|>"}, [7, 3, 9]),
    ({7: "<|im_end|>", 3: "<|endoftext|>"}, 7),
    ({4: "<|end|>", 5: "<|return|>"}, [7, 4, 5]),
    ({4: "<|end|>", 5: "<|return|>", 6: "<|call|>"}, [7, 5, 6]),
])  # fmt: skip
def test_what_ends_an_answer_by_its_text(named, ends, tmp_path):
    opened = open_pretrained(str(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), named=named)))
    assert opened.config.eos_token_id == ends


def test_windows_of_some_layers_of_a_family_that_has_them_in_all(tmp_path):
    path = write_gguf(
        tmp_path / "m.gguf", tiny_model("phi3", pad_token_id=None), header={"attention.sliding_window_pattern": 2}
    )
    refused(path, "says which of its layers see a window only, with which this program does not run such a model")


@pytest.mark.parametrize("key", ["context_length", "attention.layer_norm_rms_epsilon", "attention.head_count"])
def test_what_a_header_has_to_say(key, tmp_path):
    """Another model's default would be as good as any."""
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), header={key: None})
    refused(path, f"m.gguf says no llama.{key}; give another file")


def test_what_is_said_of_each_layer(tmp_path):
    model = tiny_model("llama")
    heads, layers = model.config.num_key_value_heads, model.config.num_hidden_layers
    for said in ([heads] * layers, [heads] * (layers - 1) + [heads + 1]):
        path = write_gguf(tmp_path / "m.gguf", model, header={"attention.head_count_kv": said})
        if len(set(said)) == 1:
            assert open_pretrained(str(path)).config.num_key_value_heads == heads
        else:
            refused(path, "has layers with another llama.attention.head_count_kv than others, with which this program")
