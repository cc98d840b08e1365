"""Which layers stand against serving a checkpoint over several shards, and how that is said."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from architectures.fields import of_all_layers
from qlinear.grid import Grid
from quantization.shards import Misfit, misfits, shards_served

LLAMA_7B = {
    "model.layers.*.self_attn.q_proj": (4096, 4096),
    "model.layers.*.self_attn.k_proj": (4096, 4096),
    "model.layers.*.self_attn.o_proj": (4096, 4096),
    "model.layers.*.mlp.gate_proj": (11008, 4096),
    "model.layers.*.mlp.down_proj": (4096, 11008),
}
CONFIG_7B = SimpleNamespace(num_attention_heads=32, num_key_value_heads=32)


def test_layers_that_have_other_numbers_of_heads():
    """As Gemma 4's: nothing is known of all of them, and a full layer's one k/v head is not copied."""
    own = dict(layer_types=["sliding_attention", "full_attention"], num_hidden_layers=2, num_key_value_heads=2)
    config = AutoConfig.for_model("gemma4_text", attention_k_eq_v=True, num_global_key_value_heads=1, **own)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        _ = config.num_key_value_heads
    assert of_all_layers(config, "num_key_value_heads", 7) == 7 and of_all_layers(config, "num_hidden_layers") == 2
    assert of_all_layers(config, "no such field") is None
    shapes = {"model.layers.*.self_attn.k_proj": (256, 2048)}
    assert shards_served(shapes, Grid(4, 128), config) == [1, 2, 4, 8]


def told(shapes, grid, config, shards) -> list[tuple[str, str, bool]]:
    return [
        (fault.layer.rpartition(".")[2], fault.reason, fault.served) for fault in misfits(shapes, grid, config, shards)
    ]


@pytest.mark.parametrize(
    ("group_size", "shards", "expected"),
    [
        (128, 1, []),
        (128, 2, []),  # 11008 = 2 * 43 * 128
        (128, 4, [("down_proj", "K = 2752 a shard is not a multiple of the group size 128", False)]),
        (64, 4, [("down_proj", "K = 2752 a shard is not a multiple of 128", True)]),  # 2752 = 43 * 64
        (64, 8, [
            ("gate_proj", "N = 1376 a shard is not a multiple of 64", True),  # 21.5 * 64
            ("down_proj", "K = 1376 a shard is not a multiple of the group size 64", False),
        ]),
        (128, 3, [("attention", "32 heads are not a multiple of 3", False)]),
    ],
)  # fmt: skip
def test_a_model_of_7b(group_size, shards, expected):
    found = told(LLAMA_7B, Grid(4, group_size), CONFIG_7B, shards)
    assert [(layer, reason, served) for layer, reason, served in found] == expected


def test_heads_of_keys_are_copied_where_there_are_fewer_than_shards():
    """2 heads of 64 over 8 shards: each has one of them whole, and 128 / 8 = 16 outputs are nobody's."""
    shapes = {"k_proj": (128, 1024), "q_proj": (1024, 1024)}
    config = SimpleNamespace(num_attention_heads=16, num_key_value_heads=2)
    assert misfits(shapes, Grid(4, 128), config, 8) == []
    alone = SimpleNamespace(num_attention_heads=16, num_key_value_heads=16)
    assert told(shapes, Grid(4, 128), alone, 8) == [("k_proj", "N = 16 a shard is not a multiple of 64", True)]


def test_codes_are_eight_to_a_word():
    assert told({"up_proj": (72, 128)}, Grid(4, 64), SimpleNamespace(), 2) == [
        ("up_proj", "N = 36 a shard is not a multiple of 8", False)
    ]
    assert told({"up_proj": (71, 128)}, Grid(4, 64), SimpleNamespace(), 2) == [
        ("up_proj", "N = 71 is not a multiple of 2", False)
    ]


def test_a_whole_layer_is_not_called_a_shard():
    assert told({"down_proj": (576, 192)}, Grid(4, 64), SimpleNamespace(), 1) == [
        ("down_proj", "K = 192 is not a multiple of 128", True)
    ]


def test_three_bits_are_not_served():
    assert misfits(LLAMA_7B, Grid(3, 128), CONFIG_7B, 1) == [
        Misfit("every layer", "vLLM reads 4 bits here, not 3", False)
    ]
    assert shards_served(LLAMA_7B, Grid(3, 128), CONFIG_7B) == []


def test_how_many_shards_serve_it():
    assert shards_served(LLAMA_7B, Grid(4, 128), CONFIG_7B) == [1, 2]
    assert shards_served(LLAMA_7B, Grid(4, 32), CONFIG_7B) == [1, 2, 4, 8]  # 688 = 21.5 * 32 a shard of 16
