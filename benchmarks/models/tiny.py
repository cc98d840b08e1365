"""A tiny random model of any type, and its directory on disk."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.overrides import OVERRIDES, VARIANTS
from benchmarks.models.shrink import shrink, shrink_tower

# Tokens of the tokenizer: fewer than the least vocabulary of any tiny model.
TOKENS = 259
WRAPPER = "wrapper"
# Sub-configurations that describe a language model or a part of one; the others read pictures or sound.
_TEXT = ("text_config", "decoder", "decoder_config", "encoder_config", "patcher_config", "global_config")
# Language models with a tower for pictures, as `AutoModelForImageTextToText` opens them.
WRAPPERS = (
    "aria", "aya_vision", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni", "deepseek_vl",
    "deepseek_vl_hybrid", "dots3_note", "exaone4_5", "fuyu", "gemma3", "gemma4", "gemma4_unified", "git", "glm46v",
    "glm4v", "glmga", "got_ocr2", "granite_docling", "hyperclovax_vision_v2", "idefics2", "idefics3",
    "inkling_mm_model", "internvl", "janus", "kimi_k25", "lfm2_vl", "lfm3_vl", "lighton_ocr", "llama4", "llava",
    "llava_next", "llava_next_video", "llava_onevision", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl",
    "mistral3", "mistral_large4", "mllama", "muse_glimmer", "ovis2", "paligemma", "pp_chart2table", "qianfan_ocr",
    "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp", "smolvlm",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table: a type as it is by default, a variant of it, or the model with its tower for pictures."""

    model_type: str
    variant: str | None = None

    @classmethod
    def named(cls, name: str) -> "Row":
        model_type, _, variant = name.partition(":")
        return cls(model_type, variant or None)

    @property
    def name(self) -> str:
        return self.model_type if self.variant is None else f"{self.model_type}:{self.variant}"

    @property
    def wrapper(self) -> bool:
        return self.variant == WRAPPER


def all_rows() -> list[Row]:
    """Every type of causal language model that the installed transformers has, some variants, and the wrappers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    variants = [Row(model_type, variant) for model_type, rows in VARIANTS.items() for variant in rows]
    return [*map(Row, sorted(CAUSAL)), *variants, *(Row(model_type, WRAPPER) for model_type in WRAPPERS)]


def tiny_config(row: Row):
    """A small configuration; raises whatever its class raises."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[row.model_type]
    changes = OVERRIDES.get(row.model_type, {}) | VARIANTS.get(row.model_type, {}).get(row.variant, {})
    default, own = kind(), deepcopy(changes)
    fields = shrink(default.to_dict()) | own
    for name, made in getattr(kind, "sub_configs", {}).items():
        inner = getattr(default, name, None)
        if inner is None and row.wrapper and name == "vision_config":  # which the default is without
            inner = made()
        if inner is not None:
            fields[name] = _inner(name, inner) | own.get(name, {})
    return kind(**{name: value for name, value in fields.items() if value is not None})


def _inner(name: str, default) -> dict[str, Any]:
    make = shrink if name in _TEXT else shrink_tower
    changed = make(default.to_dict()) | deepcopy(OVERRIDES.get(default.model_type, {}))
    return changed | ({"model_type": default.model_type} if default.model_type else {})


def tiny_model(row: Row) -> nn.Module:
    """The model in float32 and eval mode, every weight of which shows in the logits; the same one every time."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    kind = AutoModelForImageTextToText if row.wrapper else AutoModelForCausalLM
    model = kind.from_config(tiny_config(row), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    persistent = model.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            _fill(parameter, generator)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()  # as some classes do whenever they load weights
        for name, buffer in model.named_buffers():
            if name in persistent and buffer.is_floating_point() and name.endswith("bias"):
                _fill(buffer.view(-1), generator)
    return model


def _fill(tensor: Tensor, generator: torch.Generator) -> None:
    """Vectors keep what they begin with, ones for most norms, and get noise; a matrix's output is as large as its
    input."""
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.dim() < 2:
        tensor.add_(0.3 * noise)
    else:
        tensor.copy_(noise / tensor.shape[-1] ** 0.5)


def tokenizer():
    """Every tiny model's tokenizer: three special tokens, and one for every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: index for index, token in enumerate([*special, *alphabet])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def random_tokens(count: int, seed: int) -> Tensor:
    """Ids `(count,)` of ordinary tokens."""
    return torch.randint(3, TOKENS, (count,), generator=torch.Generator().manual_seed(seed))


def _random_text(count: int) -> str:
    """So many printable characters, a token each."""
    drawn = torch.randint(32, 127, (count,), generator=torch.Generator().manual_seed(3))
    return "".join(map(chr, drawn.tolist()))


def save_tiny(row: Row, directory: Path) -> Path:
    """The model in bfloat16 with its tokenizer; returned is a text beside it to calibrate on."""
    tiny_model(row).to(torch.bfloat16).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    text = directory.with_suffix(".txt")
    text.write_text(_random_text(400))
    return text
