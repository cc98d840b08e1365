"""Small configurations of any model type: rules by the names of fields, over whatever its default configuration has."""

import re
from collections.abc import Iterable
from typing import Any

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, EXPERT_FFN = 64, 4, 2, 16, 128, 64
EXPERTS, TOP_K, VOCAB, CONTEXT, WINDOW, LAYERS = 4, 2, 320, 128, 16, 2
PAD, BOS, EOS = 0, 1, 2

# Size in a tiny model, and the fields that have it. A field is set only where the default configuration has a number.
_SIZES = (
    (
        HIDDEN,
        "hidden_size d_model n_embd embedding_dim embedding_size emb_dim word_embed_proj_dim input_embedding_size "
        "output_embedding_size lru_width attention_hidden_size out_hidden_size projection_dim pronunciation_embed_dim "
        "shape_embed_dim linear_attn_hidden_size router_hidden_size embed_dim vision_output_dim q_lora_rank "
        "hidden_size_per_layer_input",
    ),
    (
        FFN,
        "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size n_inner d_inner dff dim_ff "
        "intermediate_size_mlp shared_intermediate_size dense_intermediate_size feed_forward_size mlp_hidden_size "
        "mamba_d_ssm",
    ),
    (
        EXPERT_FFN,
        "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "expert_ffn_hidden_size moe_shared_expert_intermediate_size prompt_mid_dim",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads index_n_heads "
        "linear_num_heads linear_num_value_heads",
    ),
    (
        KV_HEADS,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_global_key_value_heads",
    ),
    (
        HEAD_DIM,
        "head_dim attention_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim dim_head d_head "
        "kv_channels attention_head_size linear_head_dim linear_key_head_dim linear_value_head_dim global_head_dim "
        "query_pre_attn_scalar mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim swa_v_head_dim",
    ),
    (EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts hc_mult num_hashes"),
    (TOP_K, "num_experts_per_tok num_experts_per_token moe_topk moe_k n_group num_expert_group n_groups"),
    (
        1,
        "topk_group first_k_dense_replace num_dense_layers moe_layer_start_index n_shared_experts mamba_n_groups "
        "moe_num_shared_experts num_nextn_predict_layers mamba_ngroups",
    ),
    (VOCAB, "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size"),
    (
        CONTEXT,
        "max_position_embeddings n_positions n_ctx max_seq_len seq_length model_max_length context_length "
        "max_target_positions original_max_position_embeddings",
    ),
    (
        WINDOW,
        "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size local_attention",
    ),
    (
        8,
        "mamba_n_heads mamba_num_heads index_topk chunk_size mamba_chunk_size rotary_dim d_rel block_size "
        "index_block_size block_multiple_of",
    ),
    (32, "kv_lora_rank time_step_rank mamba_dt_rank index_head_dim o_lora_rank rel_extent laurel_rank hc_lowrank"),
    (
        LAYERS,
        "num_hidden_layers num_layers_per_stack n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_blocks num_decoder_layers num_encoder_layers depth",
    ),
)
_SIZE_OF = {field: size for size, fields in _SIZES for field in fields.split()}
_TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
# What a tower for pictures or sound has instead.
_TOWER = {"image_size": 28, "patch_size": 14, "hidden_size": 64, "num_channels": 3, "temporal_patch_size": 2}
# What a default configuration leaves to be computed from others.
_OPEN = ("head_dim", "num_key_value_heads")
# What a layer does, one entry a layer.
_KINDS = "layer_types mlp_layer_types layers_block_type indexer_types attention_layers block_types attn_layers".split()
_LAYERS = _SIZES[-1][1].split()


def shrink(default: dict[str, Any], kept: Iterable[str] = ()) -> dict[str, Any]:
    """What has to be changed in the fields of a default configuration to make it tiny, sub-configurations left out.

    Of lists that say what each layer does, as many layers stay as it takes to have one of every kind, and two at
    least. kept: fields to leave as they are.
    """
    changed = {field: _size(field, value) for field, value in default.items() if field not in kept}
    changed = {field: value for field, value in changed.items() if value is not None}
    changed |= _layers(default, kept)
    if "kv_lora_rank" in default and "num_key_value_heads" in default:  # every head has its own, out of one
        changed["num_key_value_heads"] = HEADS
    return changed


def _size(field: str, value: Any) -> Any:
    """The tiny value of a field, or None where it is to stay."""
    if field in _TOKENS:
        return _TOKENS[field]
    if re.search(r"drop|jitter|noise", field) and isinstance(value, float):
        return 0.0
    if field == "rope_parameters" and isinstance(value, dict):
        return _rotation(value)
    if field == "is_decoder":  # encoders that look both ways, if they are not told otherwise
        return True
    if value is None and field in _OPEN:
        return _SIZE_OF[field]
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if field in _LAYERS:
        return LAYERS
    return min(value, _SIZE_OF[field]) if field in _SIZE_OF else None


def _rotation(parameters: dict[str, Any]) -> dict[str, Any]:
    """Sections of a rotation for pictures fill half a head; one that grows with the text does so within a short one."""
    small = {"mrope_section": [2, 3, 3], "original_max_position_embeddings": 32}
    return {
        name: _rotation(value) if isinstance(value, dict) else small.get(name, value)
        for name, value in parameters.items()
    }


def _layers(default: dict[str, Any], kept: Iterable[str]) -> dict[str, Any]:
    """Which layers stay: lists of as many entries as there are layers are cut alike."""
    count = next((default[field] for field in _LAYERS if isinstance(default.get(field), int)), None)
    lists = {field: value for field, value in default.items()
             if isinstance(value, list | tuple) and len(value) == count and field not in kept}  # fmt: skip
    kinds = [value for field, value in lists.items() if field in _KINDS]
    if count is None or not kinds:
        return {}
    chosen: list[int] = []
    for index, layer in enumerate(zip(*kinds, strict=True)):
        seen = [{kind[i] for i in chosen} for kind in kinds]
        if any(one not in known for one, known in zip(layer, seen, strict=True)):
            chosen.append(index)
    chosen = sorted({*chosen, *([i for i in range(count) if i not in chosen][: max(0, LAYERS - len(chosen))])})
    changed: dict[str, Any] = {field: [value[i] for i in chosen] for field, value in lists.items()}
    return changed | {field: len(chosen) for field in _LAYERS if field in default and field != "depth"}


def shrink_tower(default: dict[str, Any]) -> dict[str, Any]:
    """The same for a tower that reads pictures or sound."""
    small = {field: size for field, size in _TOWER.items() if isinstance(default.get(field), int)}
    return shrink(default) | small
