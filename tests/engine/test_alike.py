"""Whether a config.json says what transformers makes of it: fields left out, older ways, and what others have."""

import json

import pytest
import torch

from architectures.registry import fused_families
from engine.at_hand import StackRunner
from qlinear.backends.cpu import native
from run_awq import load
from tests.engine.fusing import distance, tokens_of
from tests.quantized import quantized, save_float
from tests.tiny import VARIANTS

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

LENGTH = 40
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The checkpoint of a family, made once."""
    found = {}

    def make(kind: str, **options):
        key = kind, json.dumps(options, sort_keys=True)
        if key not in found:
            folder = tmp_path_factory.mktemp("alike")
            found[key] = quantized(save_float(folder / "float", kind, **options), folder / "made")
        return found[key]

    return make


def said(directory, folder, without=(), **fields):
    """A copy whose config.json says other things."""
    folder.mkdir()
    for file in directory.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((directory / "config.json").read_text()) | fields
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({name: one for name, one in config.items() if name not in without}))
    return folder


def twice(directory):
    """Opened the second time."""
    load(directory)
    return load(directory)


def assert_as_modules(model, directory):
    modules = load(directory, flash_attention=False)
    tokens = tokens_of(LENGTH)
    near = 0.1 if hasattr(modules.module.config, "num_experts") else 0.03  # of two experts as good, another is chosen
    assert distance(model.logits(tokens), modules.logits(tokens)) < near
    assert model.end_tokens == modules.end_tokens


# What transformers has a default of its own for, which is not what is there when nothing is said.
LEFT_OUT = [
    ("stablelm", "partial_rotary_factor"), ("phi", "partial_rotary_factor"), ("glm4", "partial_rotary_factor"),
    ("glm", "rope_parameters"), ("qwen3_moe", "use_sliding_window"), ("gemma2", "final_logit_softcapping"),
    ("gemma2", "query_pre_attn_scalar"), ("gemma3_text", "head_dim"), ("llama", "rope_parameters"),
    ("granite", "logits_scaling"), ("cohere2", "layer_types"), ("olmo2", "tie_word_embeddings"),
    ("llama", "eos_token_id"), ("gemma2", "tie_word_embeddings"),
]  # fmt: skip


@pytest.mark.parametrize("kind, field", LEFT_OUT)
def test_what_is_left_out_is_what_transformers_has_for_it(kind, field, made, tmp_path):
    options = next((options for known, options in VARIANTS if known == kind), {})
    directory = said(made(kind, **options), tmp_path / "said", without=[field])
    try:
        model = twice(directory)
    except Exception as error:  # which says what is wrong
        assert type(error).__module__ == "qlinear.errors" and "\n" not in str(error)
        return
    assert_as_modules(model, directory)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_scaling_beside_the_parameters_of_the_rotation(kind, made, tmp_path):
    """As makers of models have it added to config.json: transformers takes it, and not what was there."""
    directory = said(made(kind), tmp_path / "said", rope_scaling=YARN)
    assert_as_modules(twice(directory), directory)
    plain, scaled = (load(one).logits(tokens_of(LENGTH)) for one in (made(kind), directory))
    assert distance(scaled, plain) > 0.1


WINDOWED = [
    kind for kind in ("mistral", "ministral", "phi3", "mixtral", "cohere2", "gemma2", "gemma3_text", "olmo3")
    if kind in fused_families()
]  # fmt: skip


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_field_of_other_families_closes_no_window(kind, made, tmp_path):
    directory = said(made(kind, sliding_window=8), tmp_path / "said", use_sliding_window=False)
    assert_as_modules(twice(directory), directory)


def test_windows_by_layer_alone(made):
    """SmolLM3's attention looks at the types of layers; what else its config says of windows made these."""
    directory = made(
        "smollm3", sliding_window=8, use_sliding_window=False, layer_types=["sliding_attention", "full_attention"]
    )
    assert_as_modules(load(directory), directory)


def test_a_length_of_all_is_not_that_of_a_type_of_layers(made):
    rope = dict(full_attention=YARN | {"rope_theta": 1e4}, sliding_attention=dict(rope_type="default", rope_theta=1e4))
    directory = made("olmo3", rope_parameters=rope, original_max_position_embeddings=64)
    assert_as_modules(load(directory), directory)


@pytest.mark.parametrize("multiplier", [-0.6, 0.0])
def test_a_residual_that_is_taken_away(multiplier, made):
    directory = made("granite", residual_multiplier=multiplier)
    model = load(directory)
    assert not isinstance(model.runner, StackRunner)
    assert_as_modules(model, directory)


def test_without_a_place_to_keep_what_was_found_out(made, tmp_path, monkeypatch):
    directory = said(made("llama"), tmp_path / "said", rope_scaling=None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AWQ_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        model = load(directory)
        assert not isinstance(model.runner, StackRunner)
    tokens = tokens_of(LENGTH)
    assert torch.equal(model.logits(tokens), load(made("llama")).logits(tokens))
