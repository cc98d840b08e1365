"""Rotation tables against those of `transformers`' own rotary modules."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from engine.rotation import Rotation, rope_parameters
from qlinear.backends.stack import Unsupported

FACTORS = [1.0 + 0.05 * i for i in range(32)]
KINDS = {
    "default": {},
    "dynamic": dict(factor=4.0),
    "linear": dict(factor=2.5),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256),
    "yarn": dict(factor=4.0, original_max_position_embeddings=256),
    "yarn, mscale": dict(factor=40.0, mscale=1.0, mscale_all_dim=0.7, original_max_position_embeddings=256),
    "yarn, all": dict(
        factor=4.0, attention_factor=1.3, beta_fast=16, beta_slow=2, truncate=False, original_max_position_embeddings=64
    ),
    "longrope": dict(short_factor=FACTORS, long_factor=FACTORS[::-1], original_max_position_embeddings=512),
    "longrope, factor": dict(
        short_factor=FACTORS, long_factor=FACTORS, factor=3.0, original_max_position_embeddings=512
    ),
}


def config_of(kind, theta=10000.0, **more):
    parameters = dict(KINDS[kind], rope_type=kind.split(",")[0], rope_theta=theta, **more)
    return AutoConfig.for_model(
        "llama", hidden_size=256, num_attention_heads=4, max_position_embeddings=1024, rope_parameters=parameters
    )


def tables_of(config, module, length):
    positions = torch.arange(length).unsqueeze(0)
    cosines, sines = module(config)(torch.empty(1), positions)
    half = cosines.shape[-1] // 2
    return cosines[0, :, :half].numpy(), sines[0, :, :half].numpy()


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_transformers(kind, theta):
    config = config_of(kind, theta)
    found = Rotation(rope_parameters(config), 64, 1024).tables(500)
    for ours, theirs in zip(found, tables_of(config, LlamaRotaryEmbedding, 500), strict=True):
        assert ours.shape == theirs.shape == (500, 32) and ours.dtype == np.float32
        # two units in the last place of a frequency, 500 positions on
        assert np.abs(ours - theirs).max() < 4 * 500 * 2**-24 * np.abs(theirs).max()


def test_features_that_are_not_turned():
    config = config_of("default", partial_rotary_factor=0.5)
    found = Rotation(rope_parameters(config), 32, 1024).tables(40)
    for ours, theirs in zip(found, tables_of(config, Phi3RotaryEmbedding, 40), strict=True):
        assert ours.shape == theirs.shape == (40, 16)
        assert np.abs(ours - theirs).max() < 1e-5


class Fields:
    def __init__(self, **fields):
        vars(self).update(fields)


def test_configs_of_before():
    """As files of transformers 4 have it; a config's own original length goes before the rotation's."""
    plain = rope_parameters(Fields(rope_theta=5e5, rope_scaling=None, max_position_embeddings=8))
    assert plain == {"rope_theta": 5e5, "rope_type": "default"}
    scaled = rope_parameters(Fields(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0}))
    assert scaled["rope_type"] == "linear" and scaled["factor"] == 2.0
    long = Fields(
        rope_theta=1e4, rope_scaling={"type": "longrope"}, original_max_position_embeddings=4096,
        max_position_embeddings=131072,
    )  # fmt: skip
    assert rope_parameters(long)["original_max_position_embeddings"] == 4096
    of_types = Fields(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 7.0}})
    assert rope_parameters(of_types, "full_attention")["rope_theta"] == 7.0


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_longer_texts_than_a_table_holds_for(kind):
    config = config_of(kind)
    rotation = Rotation(rope_parameters(config), 64, 1024)
    original = 1024 if kind == "dynamic" else 512
    assert rotation.tables(original)[0].shape == (original, 32)
    with pytest.raises(Unsupported, match=f"^this model's {kind} rotation changes beyond {original} tokens"):
        rotation.tables(original + 1)


def test_a_kind_that_is_not_known():
    with pytest.raises(Unsupported, match="^the fused decoder does not know spiral rotations$"):
        Rotation({"rope_type": "spiral", "rope_theta": 1e4}, 64, 1024).tables(4)
