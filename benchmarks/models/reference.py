"""What transformers itself makes of a checkpoint: its weights dequantized, in its own classes, by its own `generate`.

Nothing here is the engine's: the tensors are read, unpacked and loaded by the names that the files have.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.models.overrides import COUNT_FROM_PADDING
from benchmarks.models.together import put_together
from qlinear.packing import PackedWeight

_PACKED, _PARTS = ".weight_packed", ("weight_packed", "weight_zero_point", "weight_scale", "weight_shape")


@dataclass(frozen=True)
class Reference:
    """A model of transformers. strange: tensors that it missed, or that it did not know."""

    model: nn.Module
    strange: tuple[str, ...]


def dequantized(directory: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Every tensor of a checkpoint under its stored name, quantized weights as the float32 ones they stand for; and the
    names of these."""
    from safetensors.torch import load_file

    stored = {}
    for file in sorted(directory.glob("*.safetensors")):
        stored |= load_file(file)
    config = json.loads((directory / "config.json").read_text())
    bits = config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"]
    tensors = {}
    for name in [name.removesuffix(_PACKED) for name in stored if name.endswith(_PACKED)]:
        words, zeros, scales, shape = (stored.pop(f"{name}.{part}") for part in _PARTS)
        weight = PackedWeight(words, zeros, scales, tuple(shape.tolist()), bits)
        tensors[f"{name}.weight"] = weight.unpack().dequantize()
    others = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    return others | tensors, set(tensors)


def open_reference(directory: Path, dtype: torch.dtype) -> Reference:
    """The checkpoint in the class that its configuration names, opened as transformers opens float weights."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    kind = getattr(transformers, config.architectures[0])
    tensors, linears = dequantized(directory)
    model, info = kind.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=dtype, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    if missing or unexpected or mismatched:
        filled, used = put_together(model, tensors, linears)
        missing, mismatched, unexpected = missing - filled, mismatched - filled, unexpected - used
    return Reference(model.eval(), tuple(sorted(missing | unexpected | mismatched)))


@torch.no_grad()
def whole_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """`(length, vocabulary)` float32: the whole text at once, without a cache."""
    return model(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0].float()


@torch.no_grad()
def generated(model: nn.Module, prompt: Tensor, count: int, forced: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens `(count,)` that the model's own `generate` writes, and the logits `(count, vocabulary)` behind them.

    forced: tokens to be written in the place of the likeliest.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    settings = GenerationConfig(
        do_sample=False, max_new_tokens=count, min_new_tokens=count, eos_token_id=None, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    model.generation_config = settings
    processors = LogitsProcessorList([] if forced is None else [_Forced(len(prompt), forced)])
    ids = prompt.unsqueeze(0)
    given = {"attention_mask": torch.ones_like(ids)}
    if model.config.model_type in COUNT_FROM_PADDING:
        given["position_ids"] = torch.arange(len(prompt)).unsqueeze(0) + model.config.pad_token_id + 1
    out = model.generate(ids, **given, generation_config=settings, logits_processor=processors)
    return out.sequences[0, -count:], torch.cat(out.logits).float()


class _Forced:
    """Leaves one token to choose, that of the text to be written."""

    def __init__(self, start: int, tokens: Tensor):
        self.start, self.tokens = start, tokens

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, self.tokens[ids.shape[1] - self.start]] = 0
        return only
