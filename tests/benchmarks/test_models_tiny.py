"""The tiny models: of every type, small, with every kind of layer that the type has."""

import pytest
import torch

from benchmarks.models.overrides import NO_MODEL, OVERRIDES
from benchmarks.models.shrink import EXPERTS, HEADS, HIDDEN, VOCAB, shrink, shrink_tower
from benchmarks.models.tiny import (
    TOKENS,
    WRAPPER,
    WRAPPERS,
    Row,
    all_rows,
    random_tokens,
    save_tiny,
    tiny_config,
    tiny_model,
)

KINDS = ["a", "a", "b", "a", "b", "c"]


def test_there_is_a_row_for_every_type_and_every_wrapper():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    rows = all_rows()
    assert {row.model_type for row in rows if row.variant is None} == set(CAUSAL)
    assert {"phi3:longrope", "llava:wrapper"} <= {row.name for row in rows}
    assert {row.model_type for row in rows if row.wrapper} == set(WRAPPERS)
    assert all(Row.named(row.name) == row for row in rows) and len({row.name for row in rows}) == len(rows)
    assert set(NO_MODEL) <= set(CAUSAL)


def test_every_other_type_has_a_small_configuration():
    from transformers import CONFIG_MAPPING

    assert all(name in CONFIG_MAPPING or "_" in name for name in OVERRIDES)
    for row in all_rows():
        if row.model_type not in NO_MODEL:
            config = tiny_config(row).get_text_config()
            sizes = config.to_dict()
            assert sizes["vocab_size"] <= VOCAB and sizes["vocab_size"] >= TOKENS, row.name
            for field in ("hidden_size", "d_model", "n_embd"):
                assert sizes.get(field, HIDDEN) == HIDDEN, row.name
            assert (getattr(config, "num_hidden_layers", None) or 2) <= 5, row.name


def test_layers_of_every_kind_stay():
    default = dict(num_hidden_layers=6, layer_types=KINDS, scales=[0, 1, 2, 3, 4, 5], other=[1, 2], hidden_size=4096)
    assert shrink(default) == dict(
        num_hidden_layers=3, layer_types=["a", "b", "c"], scales=[0, 2, 5], hidden_size=HIDDEN
    )  # fmt: skip


def test_two_lists_of_kinds_are_cut_alike():
    default = dict(num_hidden_layers=4, layer_types=["a", "a", "a", "a"], mlp_layer_types=["x", "x", "y", "y"])
    changed = shrink(default)
    assert changed["layer_types"] == ["a", "a"] and changed["mlp_layer_types"] == ["x", "y"]


def test_two_layers_stay_where_all_are_alike():
    assert shrink(dict(n_layer=4, layer_types=["a"] * 4)) == dict(n_layer=2, layer_types=["a", "a"])


def test_what_is_small_already_open_or_no_size_stays():
    default = dict(num_key_value_heads=1, tie_word_embeddings=True, rope_theta=1e6, sliding_window=None, n_inner=None)
    assert shrink(default) == dict(num_key_value_heads=1)


def test_nothing_drops_out_and_decoders_look_back():
    changed = shrink(dict(attention_dropout=0.1, resid_pdrop=0.1, is_decoder=False, pad_token_id=None))
    assert changed == dict(attention_dropout=0.0, resid_pdrop=0.0, is_decoder=True, pad_token_id=0)


def test_latent_attention_has_keys_for_every_head():
    assert shrink(dict(kv_lora_rank=512, num_key_value_heads=2))["num_key_value_heads"] == HEADS


def test_a_tower_is_small_too():
    assert shrink_tower(dict(image_size=224, depth=24, hidden_size=1024)) == dict(
        image_size=28, depth=2, hidden_size=64
    )


@pytest.mark.parametrize("name", ["qwen3_next", "llava:wrapper"])
def test_a_model_is_the_same_every_time_and_none_of_its_weights_is_idle(name):
    first, second = (tiny_model(Row.named(name)).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(tensor.float().std() > 0 for tensor in first.values() if tensor.numel() > 8)


@pytest.mark.parametrize("name", ["gemma4", "llava", "qwen3_vl_moe"])
def test_a_wrapper_has_a_tower(name):
    model = tiny_model(Row(name, WRAPPER))
    tower = [name for name, tensor in model.named_parameters() if "vis" in name and tensor.ndim > 1]
    assert len(tower) > 10 and not any("vis" in name for name, _ in model.get_decoder().named_parameters())


def test_a_mixture_has_its_experts():
    model = tiny_model(Row("qwen3_moe"))
    assert model.config.num_experts == EXPERTS
    assert model.get_submodule("model.layers.1.mlp.experts").down_proj.shape[0] == EXPERTS


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])  # the second has a tokenizer class of its own
def test_a_directory_has_a_tokenizer_and_a_text_of_as_many_tokens_as_characters(model_type, tmp_path):
    from transformers import AutoTokenizer

    text = save_tiny(Row(model_type), tmp_path / "float").read_text()
    ids = AutoTokenizer.from_pretrained(tmp_path / "float")(text)["input_ids"]
    assert len(ids) == len(text) == 400 and len(set(ids)) > 60 and max(ids) < TOKENS


def test_prompts_are_ordinary_tokens():
    drawn = random_tokens(2000, seed=0)
    assert drawn.min() == 3 and drawn.max() == TOKENS - 1
