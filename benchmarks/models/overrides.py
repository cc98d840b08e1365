"""What the rules of `shrink` do not get right of a type, and the types of which there is no model."""

from typing import Any

_ROTATION = {"rope_type": "default", "rope_theta": 10000.0}
_CONVOLUTIONS = dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"])
_SHARED_BLOCKS = dict(
    num_hidden_layers=4, layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"]
)  # fmt: skip
_QWEN4 = dict(
    num_experts_per_tok=2, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16,
    indexer_compress_ratio=4, ple_layer_ids=[1], ple_embed_dim=64, ngram_vocab_size_base=97, split_ngram_parts=2,
    heads_per_ngram=2, make_ngram_vocab_size_divisible_by=8, eos_token_id=2,
)  # fmt: skip
_SECTIONS = dict(rope_parameters=dict(_ROTATION, mrope_section=[2, 3, 3]))
_DOTS3 = dict(
    head_dim=32, swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=64, swa_kv_lora_rank=32,
    swa_head_dim=32, swa_qk_nope_head_dim=16, swa_qk_rope_head_dim=16, swa_v_head_dim=16,
)  # fmt: skip
_NO_BLOCKS = dict(attention_type="original_full")  # sparse blocks are for texts of a thousand tokens and more

# Model type, of a sub-configuration too -> fields. Inner dictionaries go into the sub-configuration of that name.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": dict(attn_layer_indices=[1], layer_types=None),
    "big_bird": _NO_BLOCKS,
    "bigbird_pegasus": _NO_BLOCKS,
    "blt": dict(
        encoder_hash_byte_group_vocab=64,
        encoder_config=dict(hidden_size_global=64),
        decoder_config=dict(hidden_size_global=64),
    ),
    "cohere_compass_text": dict(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": _ROTATION, "full_attention": _ROTATION},
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0),
        ffn_config=dict(hidden_size=64, ffn_hidden_size=128, moe_num_experts=4, moe_top_k=2),
    ),
    "deepseek_v2": dict(n_group=1, topk_group=1, num_experts_per_tok=2),
    "deepseek_v4": dict(o_groups=2),
    "dots1": dict(n_shared_experts=1, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1),
    "dots3_note_text": _DOTS3,
    "dots3_note_vision_encoder": dict(adapter_in_dim=64, adapter_out_dim=64),
    "dots3_note_audio_encoder": dict(adapter_input_size=64, adapter_out_dim=64, downsample_hidden_size=16),
    "falcon_h1": dict(mamba_d_ssm=128, mamba_d_head=16),
    "flint": dict(mlp_only_layers=[0]),
    "fuyu": dict(patch_size=8),
    "gemma3n_text": dict(
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        intermediate_size=[128] * 4,
        activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
    ),
    "glm4v_text": _SECTIONS,
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]], attention_layers=["global", "local"]),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"]),
    "hrm_text": dict(num_hidden_layers=4, num_layers_per_stack=2),
    "jamba": dict(
        num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=0
    ),
    "kimi_linear": dict(linear_head_dim=32),
    "laguna": dict(num_attention_heads_per_layer=None),
    "lfm2": dict(_CONVOLUTIONS, block_auto_adjust_ff_dim=False, full_attn_idxs=None),
    "lfm2_moe": _CONVOLUTIONS,
    "llama4_vision_model": dict(projector_input_dim=64, projector_output_dim=64),
    "llama4_text": dict(moe_layers=[1]),
    "longcat_flash": dict(zero_expert_num=2),
    "mamba2": dict(num_heads=8),
    "mllama_text_model": dict(num_hidden_layers=3, cross_attention_layers=[1]),
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl_text": _SECTIONS,
    "qwen4_exp": _QWEN4,
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": dict(num_hidden_layers=3),
    "reformer": dict(axial_pos_shape=[8, 16], axial_pos_embds_dim=[32, 32]),
    "xlm": dict(mask_token_id=5),  # which its `generate` puts behind the text
    "xmod": dict(default_language="en_XX"),
    # transformers' own cache has no room for keys of another width than the values'
    "xlstm": dict(qk_dim_factor=1.0),
    "zamba": dict(_SHARED_BLOCKS, attention_hidden_size=128, attention_head_dim=32),
    "zamba2": dict(_SHARED_BLOCKS, attention_hidden_size=128, attention_head_dim=32, mamba_headdim=16),
}

_LONG = dict(
    rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 8, long_factor=[4.0] * 8,
    original_max_position_embeddings=32,
)  # fmt: skip
# What a type's default configuration does not show of it: rows beside the type's own.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "falcon": {
        "alibi": dict(alibi=True, multi_query=False, num_kv_heads=4, parallel_attn=False, bias=True),
        "groups": dict(new_decoder_architecture=True, num_kv_heads=2),
    },
    "phi3": {"longrope": dict(rope_parameters=_LONG, original_max_position_embeddings=32)},
}

# Their first position is the one behind the padding's id; `generate` has to be told so.
COUNT_FROM_PADDING = (
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip

_DRAFTER = "drafts for another model, whose keys and values it reads: no language model by itself"
_DECODER = "its class of a causal LM takes the configuration of the decoder inside, which is no type of its own"

# Why there is no tiny model of a type.
NO_MODEL = {
    "gemma3n": "its vision tower is of the timm library; gemma3n_text is its text tower",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "musicgen": _DECODER,
    "musicgen_melody": _DECODER,
}
