"""What a model's generation_config asks of every token it writes, followed as `generate` of `transformers` does."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qlinear.backends.stack import Unsupported
from qlinear.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# (text, logits) -> logits: a text `(length,)` so far, its prompt included, and what comes after it `(vocabulary,)`.
Adjust = Callable[[np.ndarray, np.ndarray], np.ndarray]

# What `generate` would do otherwise than by adjusting logits, and is not done here: the field, and what it is when it
# asks for nothing.
NOT_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "stop_strings": (None,),
    "max_time": (None,),
    "token_healing": (None, False),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "prompt_lookup_num_tokens": (None,),
}
# How tokens are drawn, where `do_sample` says that they are.
DRAWN = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
# What has nothing to do with which token comes.
_ASIDE = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "transformers_version", "_from_model_config",
          "use_cache", "max_length", "max_new_tokens", "output_attentions", "output_hidden_states")  # fmt: skip


def both(first: Adjust | None, then: Adjust | None) -> Adjust | None:
    """One after the other, where there are two."""
    if first is None or then is None:
        return first or then
    return lambda text, logits: then(text, first(text, logits))


class Rules(Protocol):
    """Of one model. notes: what of its generation_config is not followed, in words."""

    notes: tuple[str, ...]

    def for_text(self, prompt_tokens: int, new_tokens: int, repetition_penalty: float | None = None) -> Adjust | None:
        """How the logits of one answer are adjusted; None where nothing is asked for.

        repetition_penalty: in the place of the model's own.
        """
        ...


class ModuleRules:
    """`Rules` by the machinery of `transformers` itself."""

    def __init__(self, module: "nn.Module", end_tokens: frozenset[int]):
        """Raises `ModelError` for a generation_config that asks for what there is not."""
        self._module = module
        given = module.generation_config
        config = deepcopy(given)
        config.update(**{name: None for name in NOT_FOLLOWED}, do_sample=False, eos_token_id=sorted(end_tokens) or None)
        config.update(**given._get_default_generation_params(), defaults_only=True)
        self._config = config
        self.notes = _not_followed(given.to_dict())
        self.for_text(1, 1)

    def for_text(self, prompt_tokens: int, new_tokens: int, repetition_penalty: float | None = None) -> Adjust | None:
        config = deepcopy(self._config)
        if repetition_penalty is not None:
            config.repetition_penalty = repetition_penalty
        config.max_length = prompt_tokens + new_tokens
        try:
            self._module._prepare_special_tokens(config, device="cpu", batch_size=1)
            found = self._module._get_logits_processor(config, prompt_tokens, device="cpu", model_kwargs={})
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(f"the model's generation_config.json: {' '.join(str(error).split())}") from error
        if not found:
            return None
        import torch

        def adjust(text: np.ndarray, logits: np.ndarray) -> np.ndarray:
            given = torch.from_numpy(text).unsqueeze(0), torch.from_numpy(logits.copy()).unsqueeze(0)
            try:
                return found(*given)[0].numpy()
            except (ValueError, TypeError, RuntimeError, IndexError) as error:
                raise ModelError(f"the model's generation_config.json: {' '.join(str(error).split())}") from error

        return adjust


def _asks(name: str, value: Any) -> bool:
    """Whether a field says anything: a 0 does where it is a token."""
    return value is not None and value is not False and (value != 0 or name.startswith("forced_"))


class PlainRules:
    """`Rules` of the fields of a generation_config.json, of those that most models have."""

    def __init__(self, config: Mapping[str, Any]):
        """Raises `Unsupported` for a field that takes `transformers` to be followed."""
        penalty = config.get("repetition_penalty")
        known = {*NOT_FOLLOWED, *DRAWN, *_ASIDE, "repetition_penalty"}
        asked = [name for name, value in config.items() if name not in known and _asks(name, value)]
        if asked:
            raise Unsupported(f"its generation_config.json asks for {asked[0]}")
        if not (penalty is None or (isinstance(penalty, int | float) and penalty > 0)):
            raise Unsupported(f"its generation_config.json asks for a repetition_penalty of {penalty!r}")
        self._penalty = np.float32(penalty or 1.0)
        self.notes = _not_followed(config)

    def for_text(self, prompt_tokens: int, new_tokens: int, repetition_penalty: float | None = None) -> Adjust | None:
        penalty = self._penalty if repetition_penalty is None else np.float32(repetition_penalty)
        return None if penalty == 1 else partial(_penalized, penalty)


def _penalized(penalty: np.float32, text: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Keskar et al., arXiv 1909.05858, as `transformers` has it: what the text holds becomes less likely."""
    adjusted = logits.copy()
    of_text = adjusted[text]
    adjusted[text] = np.where(of_text < 0, of_text * penalty, of_text / penalty)
    return adjusted


def _not_followed(config: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [
        f"the model's generation_config.json asks for {name} {config[name]}, which is not followed"
        for name, idle in NOT_FOLLOWED.items()
        if config.get(name) not in idle
    ]
    if config.get("do_sample"):
        drawn = ", ".join(f"{name} {config[name]}" for name in DRAWN if config.get(name) is not None)
        notes.append(
            f"the model's generation_config.json asks for tokens to be drawn ({drawn or 'temperature 1.0'}); they are "
            f"where `temperature` is given"
        )
    return tuple(notes)
