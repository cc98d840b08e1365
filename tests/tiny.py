"""Tiny random models of every supported architecture, for tests that need a real one of `transformers`' classes."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from architectures.anatomy import Anatomy, by_shape
from architectures.registry import find_family

HIDDEN, FFN, HEADS, LAYERS, VOCAB, CONTEXT = 64, 128, 4, 2, 128, 256

_COMMON = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
_GROUPED = dict(_COMMON, intermediate_size=FFN, num_key_value_heads=2)
_GEMMA = dict(_GROUPED, head_dim=16)
_GEMMA_WINDOW = dict(_GEMMA, query_pre_attn_scalar=16, sliding_window=8)
_GRANITE = dict(
    _GROUPED, embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.15, logits_scaling=5.0
)
_VISION = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)

_SIZES = {
    "llama": _GROUPED,
    "mistral": dict(_GROUPED, sliding_window=8),
    "qwen2": _GROUPED,
    "qwen3": dict(_GROUPED, head_dim=16),
    "phi3": _GROUPED,
    "gemma": _GEMMA,
    "gemma2": _GEMMA_WINDOW,
    "gemma3_text": _GEMMA_WINDOW,
    "gemma3": dict(text_config=_GEMMA_WINDOW, vision_config=_VISION, mm_tokens_per_image=4),
    "opt": dict(_COMMON, ffn_dim=FFN),
    "gpt_neox": dict(_COMMON, intermediate_size=FFN),
    "falcon": dict(_COMMON, ffn_hidden_size=FFN),
    "bloom": {name: size for name, size in _COMMON.items() if name != "max_position_embeddings"},
    "starcoder2": _GROUPED,
    "ministral": dict(_GROUPED, head_dim=16, sliding_window=8),
    "seed_oss": dict(_GROUPED, head_dim=16),
    "ernie4_5": dict(_GROUPED, head_dim=16),
    "cwm": dict(
        _GROUPED,
        head_dim=16,
        sliding_window=8,
        rope_parameters=dict(rope_type="default", rope_theta=1e4),
    ),
    "internlm3": dict(_GROUPED, head_dim=16),
    "helium": dict(_GROUPED, head_dim=16),
    "smollm3": dict(_GROUPED, no_rope_layer_interval=2),
    "granite": _GRANITE,
}

MODEL_TYPES = tuple(_SIZES)

_ROUTED = dict(_GROUPED, num_experts_per_tok=3, moe_intermediate_size=32)
_GROUP_LIMITED = dict(
    _ROUTED, n_routed_experts=12, n_group=4, topk_group=2, n_shared_experts=2, first_k_dense_replace=1,
    num_hidden_layers=3, routed_scaling_factor=1.7, norm_topk_prob=True, head_dim=16,
)  # fmt: skip
_MIXTURES = {
    "qwen3_moe": dict(_ROUTED, num_experts=8, head_dim=16, norm_topk_prob=True),
    "qwen2_moe": dict(_ROUTED, num_experts=8, shared_expert_intermediate_size=96),
    "mixtral": dict(_GROUPED, num_local_experts=6, num_experts_per_tok=2, intermediate_size=64),
    "olmoe": dict(_GROUPED, num_experts=8, num_experts_per_tok=3, intermediate_size=64),
    "glm4_moe": dict(_GROUP_LIMITED, use_qk_norm=True),
    "dots1": _GROUP_LIMITED,
    "ernie4_5_moe": dict(
        _GROUPED, moe_num_experts=8, moe_k=3, moe_intermediate_size=32, moe_num_shared_experts=2,
        num_hidden_layers=3, moe_layer_start_index=1,
    ),
    "granitemoe": dict(_GRANITE, num_local_experts=8, num_experts_per_tok=3, intermediate_size=32),
}  # fmt: skip

MIXTURE_TYPES = tuple(_MIXTURES)

_WINDOWS = dict(
    _GROUPED, num_hidden_layers=4, sliding_window=8, layer_types=["sliding_attention"] * 3 + ["full_attention"]
)
# Families that decoders run as a whole, and whose edges are found out.
_FOUND_OUT = {
    "glm": dict(_GROUPED, head_dim=16),
    "glm4": dict(_GROUPED, head_dim=16),
    "olmo2": _GROUPED,
    "olmo3": _WINDOWS,
    "exaone4": _WINDOWS,
    "cohere": _GROUPED,
    "cohere2": _WINDOWS,
    "hunyuan_v1_dense": dict(_GROUPED, head_dim=16),
    "stablelm": _GROUPED,
    "apertus": _GROUPED,
    "arcee": _GROUPED,
    "nemotron": dict(_GROUPED, head_dim=16),
    "phi": _GROUPED,
}

FOUND_OUT_TYPES = tuple(_FOUND_OUT)

_FAST = dict(rope_type="default", rope_theta=100.0)
_ALPHA = dict(rope_type="dynamic", rope_theta=1e4, alpha=50.0, factor=1.0)
FOUND_OUT_VARIANTS = (
    ("glm", {}),
    ("glm", dict(attention_bias=False, num_key_value_heads=1, tie_word_embeddings=True)),
    ("glm4", {}),
    ("glm4", dict(attention_bias=False, head_dim=24, num_key_value_heads=HEADS)),
    ("olmo2", {}),
    ("olmo2", dict(num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True)),
    ("olmo3", {}),
    ("olmo3", dict(rope_parameters=dict(full_attention=_FAST, sliding_attention=dict(_FAST, rope_theta=1e4)))),
    ("exaone4", {}),
    ("exaone4", dict(sliding_window=None, layer_types=["full_attention"] * 4, tie_word_embeddings=True)),
    ("cohere", {}),
    ("cohere", dict(logit_scale=2.5, attention_bias=True, tie_word_embeddings=False)),
    ("cohere2", {}),
    ("cohere2", dict(num_key_value_heads=1, attention_bias=True)),
    ("hunyuan_v1_dense", {}),
    ("hunyuan_v1_dense", dict(rope_parameters=_ALPHA, attention_bias=True, head_dim=32)),
    ("stablelm", {}),
    ("stablelm", dict(use_parallel_residual=True, use_qkv_bias=True, num_key_value_heads=HEADS)),
    ("apertus", {}),
    ("apertus", dict(num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True)),
    ("arcee", {}),
    ("arcee", dict(attention_bias=True, mlp_bias=True, head_dim=24)),
    ("nemotron", {}),
    ("nemotron", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=HEADS)),
    ("phi", {}),
    ("phi", dict(num_key_value_heads=HEADS, partial_rotary_factor=0.25)),
)

# Every shape of a block that a config can ask for and that the foldings tell apart.
VARIANTS = (
    ("llama", {}),
    ("llama", dict(num_key_value_heads=HEADS)),
    ("llama", dict(num_key_value_heads=1)),
    ("llama", dict(head_dim=24, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ("mistral", {}),
    ("mistral", dict(head_dim=24)),
    ("qwen2", {}),
    ("qwen2", dict(tie_word_embeddings=True)),
    ("qwen3", {}),
    ("qwen3", dict(head_dim=32, attention_bias=True)),
    ("phi3", {}),
    ("phi3", dict(num_key_value_heads=HEADS)),
    ("phi3", dict(num_key_value_heads=1, rope_parameters=dict(rope_type="default", partial_rotary_factor=0.5))),
    ("gemma", {}),
    ("gemma", dict(num_key_value_heads=1, head_dim=32)),
    ("gemma2", {}),
    ("gemma2", dict(num_key_value_heads=HEADS, head_dim=32, attention_bias=True)),
    ("gemma3_text", {}),
    ("gemma3_text", dict(num_key_value_heads=1, head_dim=24)),
    ("gemma3", {}),
    ("opt", {}),
    ("opt", dict(enable_bias=False, tie_word_embeddings=False)),
    ("opt", dict(do_layer_norm_before=False, word_embed_proj_dim=32)),
    ("opt", dict(layer_norm_elementwise_affine=False)),
    ("opt", dict(activation_function="gelu")),
    ("gpt_neox", {}),
    ("gpt_neox", dict(use_parallel_residual=False, attention_bias=False)),
    ("falcon", {}),
    ("falcon", dict(bias=True, num_kv_heads=2)),
    ("falcon", dict(multi_query=False, alibi=True, parallel_attn=False, bias=True)),
    ("falcon", dict(multi_query=True, parallel_attn=False)),
    ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2, bias=True)),
    ("falcon", dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)),
    ("falcon", dict(new_decoder_architecture=True, num_kv_heads=1, tie_word_embeddings=False)),
    ("bloom", {}),
    ("bloom", dict(apply_residual_connection_post_layernorm=True)),
    ("starcoder2", {}),
    ("starcoder2", dict(use_bias=False, num_key_value_heads=HEADS, tie_word_embeddings=False)),
    ("ministral", {}),
    ("seed_oss", {}),
    ("ernie4_5", dict(use_bias=True)),
    ("cwm", {}),
    ("internlm3", dict(qkv_bias=True, bias=True)),
    ("helium", {}),
    ("smollm3", {}),
    ("granite", {}),
    ("granite", dict(num_key_value_heads=HEADS, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
)


def tiny_model(model_type: str, **overrides) -> PreTrainedModel:
    """A causal LM with two blocks in float32 and eval mode; `overrides` go to its config.

    Nothing in it is special: norm weights are not one, biases not zero, and a linear's output is about as large as
    its input, so that no part can be wrong without showing in the logits. The same arguments give the same model.
    """
    # Configs write into the dictionaries they are given.
    config = AutoConfig.for_model(
        model_type, **deepcopy({**(_SIZES | _MIXTURES | _FOUND_OUT)[model_type], **overrides})
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its weights in bfloat16, and its rotary frequencies in float32 as models are opened."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def known_of(model: PreTrainedModel, block: nn.Module) -> Anatomy:
    """The block's linears, and the edges that the table of families has for it."""
    family = find_family(model.config)
    return replace(by_shape(block), edges=family.edges, unclipped=family.unclipped)


def tiny_tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    """Token ids `(batch, length)` that any tiny model reads."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))
