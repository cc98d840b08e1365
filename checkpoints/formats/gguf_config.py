"""What a GGUF header says of a model, as a configuration of transformers: the other way of `gguf_header.py`.

Keys and defaults are llama.cpp's (`llama_model::load_hparams`, `src/models/*.cpp`); a setting that changes what a model
computes and that is not known here is refused.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from architectures.family import Family
from architectures.gguf import Gguf
from checkpoints.sources import one_line_errors
from qlinear.errors import ModelError

# Key, behind the architecture's name -> field.
FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
# Of those, what llama.cpp does not do without either.
NEEDED = (
    "context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip
TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}
ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message: after each of them an answer is at its end
# What ends a turn whether or not the header says so: most files of chat models name one end only, which may be that of
# a text (llama.cpp's `llama_vocab::impl::load` has a longer list).
ENDS_BY_TEXT = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<EOT>", "<|return|>", "<|call|>")
HARMONY = ("<|return|>", "<|call|>")  # where there are both, <|end|> ends no answer
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # fields of a header and of a configuration
# Tensor -> field of a configuration that says that a layer's linears have biases.
BIASES = {"blk.0.attn_q.bias": "attention_bias", "blk.0.ffn_up.bias": "mlp_bias"}
# Tensors by which rotary frequencies are divided.
LLAMA3, LONG, SHORT = ROPE_TABLES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Of every Llama that is scaled so (its config.json); the tensor says the rest.
LOW, HIGH = 1.0, 4.0
ROPE_KEYS = frozenset("type factor original_context_length attn_factor yarn_beta_fast yarn_beta_slow finetuned".split())


@dataclass(frozen=True)
class Described:
    """A file as its header has it. tensor: reads one of its tensors as float32; array: an array of its metadata, whole,
    None for what is none; of an array, `metadata` has the length.
    """

    path: Path
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    family: Family
    tensor: Callable[[str], Tensor]
    array: Callable[[str], list | None]

    @property
    def known(self) -> Gguf:
        return self.family.gguf

    def get(self, key: str, default: Any = None) -> Any:
        """What the header says under the architecture's name."""
        return self.metadata.get(f"{self.known.architecture}.{key}", default)


def read_config(file: Described):
    """The transformers configuration. Raises `ModelError` where the header describes none, or one that is not known."""
    from transformers import AutoConfig

    with one_line_errors(f"{file.path} describes no {file.known.architecture} model"):
        values = {field: value for key, field in FIELDS.items() if (value := _of_all_layers(file, key)) is not None}
        if missing := [key for key in NEEDED if FIELDS[key] not in values]:
            raise ModelError(f"{file.path} says no {file.known.architecture}.{missing[0]}; give another file")
        # An array is kept as its length, so the vocabulary is its size.
        values.setdefault("vocab_size", file.metadata.get("tokenizer.ggml.tokens"))
        values |= {field: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name, field in TOKENS.items()}
        ends = _ends(file)
        values["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)
        values |= {field: True for tensor, field in BIASES.items() if tensor in file.shapes}
        values["tie_word_embeddings"] = "output.weight" not in file.shapes
        values["head_dim"] = _head_width(file, values)
        if not values.get("sliding_window", True):
            values["sliding_window"] = None  # Phi's files have a 0 for none
        values["rope_parameters"] = _rope(file, values)
        if file.known.wide_layers is not None:
            wide = values["num_hidden_layers"] == file.known.wide_layers
            head = values["hidden_size"] // values["num_attention_heads"] if wide else values["head_dim"]
            values["query_pre_attn_scalar"] = head
        values |= _windows(file, values)
        config = AutoConfig.for_model(file.family.model_type, **values)
        _refuse_the_rest(file, config)
        return config


def _of_all_layers(file: Described, key: str) -> Any:
    """What the header says; where it says it of each layer, the one thing that it says of all."""
    several = file.array(f"{file.known.architecture}.{key}")
    if several is None:
        return file.get(key)
    if len(set(several)) != 1:
        raise ModelError(
            f"{file.path} has layers with another {file.known.architecture}.{key} than others, with which this program "
            f"does not run such a model; give the model's safetensors directory"
        )
    return several[0]


def _ends(file: Described) -> list[int]:
    """The tokens after which an answer is at its end, the header's own first."""
    said = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    tokens = file.array("tokenizer.ggml.tokens") or []
    numbers = {token: number for number, token in enumerate(tokens) if token in ENDS_BY_TEXT}
    if numbers.keys() >= set(HARMONY):
        numbers.pop("<|end|>", None)
    return list(dict.fromkeys([end for end in said if end is not None] + sorted(numbers.values())))


def _windows(file: Described, values: dict) -> dict:
    """Which layers see a window only, where the header says it: every one but each n-th, or one by one."""
    layers, name = values["num_hidden_layers"], "attention.sliding_window_pattern"
    if (pattern := file.get(name)) is None:
        return {}
    has_window = file.array(f"{file.known.architecture}.{name}")
    if has_window is None:
        has_window = [bool(pattern) and (layer + 1) % pattern != 0 for layer in range(layers)]
    return {"layer_types": ["sliding_attention" if one else "full_attention" for one in has_window]}


def _refuse_the_rest(file: Described, config: Any) -> None:
    """Raise `ModelError` for a setting of the header that changes what is computed and came to nothing here."""
    head, scalar, known = config.head_dim, getattr(config, "query_pre_attn_scalar", None), type(config)()
    if hasattr(config, "layer_types") and not hasattr(known, "layer_types"):
        raise ModelError(
            f"{file.path} says which of its layers see a window only, with which this program does not run such a "
            f"model; give the model's safetensors directory"
        )
    rotated = config.head_dim * (_full(config.rope_parameters).get("partial_rotary_factor") or 1.0)
    means_nothing = {  # by how a setting ends: what it is when it asks for nothing that is not done anyway
        "attention.value_length": head, "rope.dimension_count": rotated, "attention.scale": (scalar or head) ** -0.5,
        "rope.scale_linear": 1.0, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0,
        "attention.causal": True, "use_parallel_residual": False, "logit_scale": 1.0, "residual_scale": 1.0,
        "embedding_scale": 1.0, "expert_count": 0, "expert_used_count": 0, "leading_dense_block_count": 0,
        **{cap: getattr(config, cap) if hasattr(known, cap) else 0.0 for cap in CAPS if hasattr(config, cap)},
    }  # fmt: skip
    for name, nothing in means_nothing.items():
        said = file.get(name)
        not_said = said is None or (said == 0 and said is not False)
        if not not_said and not math.isclose(said, nothing, rel_tol=1e-3):
            raise ModelError(
                f"{file.path} has a setting {file.known.architecture}.{name} of {said:g}, with which this program does "
                f"not run such a model; give the model's safetensors directory"
            )


def _full(rope: dict) -> dict:
    """How layers rotate that see everything."""
    return rope.get("full_attention", rope)


def _head_width(file: Described, values: dict) -> int:
    """As it is said; where all of a head rotates, that says it too."""
    width = file.get("attention.key_length")
    if width is None and not file.known.partial_rotary:
        width = file.get("rope.dimension_count")
    return width or values["hidden_size"] // values["num_attention_heads"]


# ---- rotary positions


def _rope(file: Described, values: dict) -> dict:
    rope = {"rope_type": "default", "rope_theta": file.get("rope.freq_base", 1e4 if not file.known.swa_rope else 1e6)}
    rope |= _scaling(file, values, rope["rope_theta"])
    if file.known.partial_rotary and (rotated := file.get("rope.dimension_count")):
        rope["partial_rotary_factor"] = rotated / values["head_dim"]
    if not file.known.swa_rope:
        return rope
    window = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 1e4)}
    return {"full_attention": rope, "sliding_attention": window}


def _scaling(file: Described, values: dict, theta: float) -> dict:
    """How positions are scaled; llama.cpp takes a factor without a type for a linear one."""
    prefix = f"{file.known.architecture}.rope.scaling."
    said = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    kind = said.get("type", "linear")
    if kind == "linear" and not said.get("factor"):
        kind = "none"
    if (LONG in file.shapes) != (kind == "longrope"):
        kind = "longrope" if LONG in file.shapes and kind == "none" else f"{kind}, and its tables"
    elif LLAMA3 in file.shapes:
        kind = "llama3" if kind == "none" else f"{kind} and by a table"
    read = {"none": _none, "linear": _linear, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope}.get(kind)
    unknown = sorted(said.keys() - ROPE_KEYS)
    if read is None or unknown or (read not in (_none, _longrope) and said.get("attn_factor", 1.0) != 1.0):
        told = ", ".join(unknown) or kind
        raise ModelError(
            f"{file.path} scales its rotary positions in a way that is not known ({told}); give the model's "
            f"safetensors directory"
        )
    return read(file, said, values, theta)


def _none(file: Described, said: dict, values: dict, theta: float) -> dict:
    return {}


def _linear(file: Described, said: dict, values: dict, theta: float) -> dict:
    return {"rope_type": "linear", "factor": said["factor"]}


def _yarn(file: Described, said: dict, values: dict, theta: float) -> dict:
    first = said.get("original_context_length", values["max_position_embeddings"])
    betas = {f"beta_{end}": said[f"yarn_beta_{end}"] for end in ("fast", "slow") if f"yarn_beta_{end}" in said}
    return {"rope_type": "yarn", "factor": said["factor"], "original_max_position_embeddings": first} | betas


def _llama3(file: Described, said: dict, values: dict, theta: float) -> dict:
    """Llama 3.1's scaling by the table of what its frequencies are divided by (`gguf_header._llama3`).

    Where a frequency is blended, `1 / divisor = kept + (1 - kept) / factor`, and `kept` says how often it turns within
    the first context. Raises `ModelError` for a table that this does not give again.
    """
    divisors = file.tensor(LLAMA3).double()
    factor = float(divisors.max())
    frequencies = theta ** (-torch.arange(len(divisors), dtype=torch.float64) / len(divisors))
    kept = (1 / divisors - 1 / factor) / (1 - 1 / factor) if factor > 1 else torch.ones_like(divisors)
    turns = kept * (HIGH - LOW) + LOW
    blended = (kept > 1e-4) & (kept < 1 - 1e-4)
    first = round(float((2 * math.pi * turns / frequencies)[blended].median())) if blended.any() else 0
    again = ((first * frequencies / (2 * math.pi) - LOW) / (HIGH - LOW)).clamp(0, 1)
    if not first or not torch.allclose(1 / (again + (1 - again) / factor), divisors, rtol=1e-4):
        raise ModelError(
            f"{file.path} divides its rotary frequencies by a table ({LLAMA3}) that is not Llama 3.1's; give the "
            f"model's safetensors directory"
        )
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
        "original_max_position_embeddings": first,
    }  # fmt: skip


def _longrope(file: Described, said: dict, values: dict, theta: float) -> dict:
    first = said["original_context_length"]
    values["original_max_position_embeddings"] = first
    tables = {"long_factor": file.tensor(LONG).tolist(), "short_factor": file.tensor(SHORT).tolist()}
    scale = {"attention_factor": said["attn_factor"]} if "attn_factor" in said else {}
    return {"rope_type": "longrope", "original_max_position_embeddings": first} | tables | scale
