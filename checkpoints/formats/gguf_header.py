"""What a GGUF header says of a model: sizes, rotary positions and windows, as llama.cpp reads them.

It computes only what its graphs have (`src/models/*.cpp`); whatever of a configuration they would pass over is refused.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from architectures.gguf import Gguf, GgufExperts
from qlinear.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig as Config


def write_header(writer: Any, config: "Config", known: Gguf) -> list[str]:
    """Put sizes and settings into a `gguf.GGUFWriter`; what there is to say of them is returned.

    Raises `CheckpointError` for a configuration that llama.cpp would run as another model.
    """
    _check(config, known)
    context, notes = _context(config, known)
    head_dim = head_width(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(rotated_width(config))
    if known.window_period is not None:
        writer.add_sliding_window(config.sliding_window)
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, field, None) is not None:
            getattr(writer, f"add_{field}")(getattr(config, field))
    if known.experts is not None:
        _write_experts(writer, config, known.experts)
    return notes


def _write_experts(writer: Any, config: "Config", experts: GgufExperts) -> None:
    writer.add_expert_count(getattr(config, experts.count))
    writer.add_expert_used_count(getattr(config, experts.chosen))
    if experts.named_width:
        writer.add_expert_feed_forward_length(getattr(config, experts.width))
    if experts.shared_width is not None:
        writer.add_expert_shared_feed_forward_length(getattr(config, experts.shared_width))


def head_width(config: "Config") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotated_width(config: "Config") -> int:
    return int(head_width(config) * _full_rope(config).get("partial_rotary_factor", 1.0))


def _check(config: "Config", known: Gguf) -> None:
    """Raise `CheckpointError` for the first trait that llama.cpp does not compute."""
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    field, activation = known.activation
    head_dim = head_width(config)
    _need(getattr(config, field) == activation, known, f"{field} {getattr(config, field)!r}, not {activation!r}")
    wide = known.own_head_dim or head_dim * heads == config.hidden_size
    _need(wide, known, f"heads of {head_dim}, not of hidden_size / num_attention_heads")
    grouped = config.num_key_value_heads != heads
    _need(known.grouped_heads or not grouped, known, f"{config.num_key_value_heads} heads of k and v for {heads} of q")
    whole = known.partial_rotary or rotated_width(config) == head_dim
    _need(whole, known, f"only {rotated_width(config)} of a head's {head_dim} values rotated")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None:
        computed = config.hidden_size // heads if layers == known.wide_layers else head_dim
        _need(scalar == computed, known, f"query_pre_attn_scalar {scalar}, not {computed}")
        _need(not getattr(config, "use_bidirectional_attention", False), known, "attention to what comes later")
        caps = (config.attn_logit_softcapping is None, config.final_logit_softcapping is None)
        _need(caps == ((True, True) if known.swa_rope else (False, False)), known, "its logits capped in another way")
    if known.window_period is not None:
        _need(_slides(config) == _every(known.window_period, layers), known, "windows on other layers")
    if known.unrotated_period is not None:
        rotates = [bool(each) for each in config.no_rope_layers]
        _need(rotates == _every(known.unrotated_period, layers), known, "other layers that do not rotate")
    if known.experts is not None:
        _check_experts(config, known, known.experts)


def _check_experts(config: "Config", known: Gguf, experts: GgufExperts) -> None:
    normalized = getattr(config, "norm_topk_prob", experts.normalized)
    _need(normalized == experts.normalized, known, f"norm_topk_prob {normalized}")
    _need(getattr(config, "clip_qkv", None) is None, known, "limits of q, k and v")


def _need(holds: bool, known: Gguf, otherwise: str) -> None:
    if not holds:
        raise CheckpointError(f"the model has {otherwise}, which llama.cpp's {known.architecture} does not compute")


def _every(period: int, layers: int) -> list[bool]:
    """Of each layer, whether it is none of every `period`-th (`llama_hparams::set_swa_pattern`)."""
    return [(layer + 1) % period != 0 for layer in range(layers)]


def _slides(config: "Config") -> list[bool]:
    """Of each layer, whether it sees a window only."""
    layers = config.num_hidden_layers
    if (kinds := getattr(config, "layer_types", None)) is not None:
        return [kind == "sliding_attention" for kind in kinds]
    return [getattr(config, "sliding_window", None) is not None] * layers


def _context(config: "Config", known: Gguf) -> tuple[int, list[str]]:
    """Positions that the file says it is for: no more than a window holds where llama.cpp knows none."""
    context = config.max_position_embeddings
    if known.window_period is not None or not any(_slides(config)) or config.sliding_window >= context:
        return context, []
    window = config.sliding_window
    said = f"llama.cpp's {known.architecture} has no windows: the file is for {window} tokens, not {context}"
    return window, [said]


# ---- rotary positions


def _full_rope(config: "Config") -> dict:
    """How layers that see everything rotate."""
    rope = config.rope_parameters
    return rope["full_attention"] if "full_attention" in rope else rope


def write_rope(writer: Any, config: "Config", known: Gguf) -> dict[str, Tensor]:
    """Put how positions are rotated into a `gguf.GGUFWriter`; the tensors that say more of it are returned.

    Raises `CheckpointError` for a scaling that llama.cpp does not have, or not in this architecture.
    """
    rope = _full_rope(config)
    kind = rope.get("rope_type", "default")
    if kind != "default" and kind not in known.ropes:
        can = ", ".join(known.ropes) or "none"
        raise CheckpointError(
            f"positions are scaled by {kind}; of llama.cpp's {known.architecture} what is known is {can}"
        )
    writer.add_rope_freq_base(rope["rope_theta"])
    _write_swa_rope(writer, config, known)
    return {"linear": _linear, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope}.get(kind, _plain)(
        writer, config, rope
    )


def _write_swa_rope(writer: Any, config: "Config", known: Gguf) -> None:
    window = config.rope_parameters.get("sliding_attention")
    if window is None:
        return
    full = _full_rope(config)
    same = window["rope_theta"] == full["rope_theta"]
    _need(known.swa_rope or same, known, "a rotation of its own in layers with windows")
    _need(window.get("rope_type", "default") == "default", known, "scaled positions in layers with windows")
    if known.swa_rope:
        writer.add_rope_freq_base_swa(window["rope_theta"])


def _plain(writer: Any, config: "Config", rope: dict) -> dict[str, Tensor]:
    return {}


def _linear(writer: Any, config: "Config", rope: dict) -> dict[str, Tensor]:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
    return {}


def _yarn(writer: Any, config: "Config", rope: dict) -> dict[str, Tensor]:
    """llama.cpp takes the paper's temperature and whole dimensions (`ggml_rope_yarn_corr_dims`; arXiv 2309.00071)."""
    import gguf

    paper = 0.1 * math.log(rope["factor"]) + 1.0
    given = rope.get("attention_factor") or paper
    own = [name for name in ("mscale", "mscale_all_dim") if rope.get(name)]
    if own or rope.get("truncate") is False or not math.isclose(given, paper, rel_tol=1e-6):
        raise CheckpointError("positions are scaled by a yarn with a temperature or truncation that llama.cpp has not")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    return {}


def _llama3(writer: Any, config: "Config", rope: dict) -> dict[str, Tensor]:
    """What each frequency is divided by, as a tensor: Llama 3.1's scaling by wavelength.

    Long waves are slowed by `factor`, short ones kept, those between blended (transformers'
    `_compute_llama3_parameters`; `LlamaModel.generate_extra_tensors` of llama.cpp's converter).
    """
    width = rotated_width(config)
    frequencies = rope["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # within the first context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / (kept + (1 - kept) / rope["factor"])).float()}


def _longrope(writer: Any, config: "Config", rope: dict) -> dict[str, Tensor]:
    """Two tables of what frequencies are divided by: llama.cpp takes one by the size of its context."""
    import gguf

    first = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    grown = rope.get("factor") or config.max_position_embeddings / first
    paper = math.sqrt(1 + math.log(grown) / math.log(first)) if grown > 1 else 1.0
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(first)
    writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or paper)
    half = rotated_width(config) // 2
    tables = {}
    for name in ("long", "short"):
        factors = torch.tensor(rope[f"{name}_factor"], dtype=torch.float32)
        if factors.shape != (half,):
            raise CheckpointError(f"{name}_factor has {len(factors)} values where {half} pairs are rotated")
        tables[f"rope_factors_{name}.weight"] = factors
    return tables
