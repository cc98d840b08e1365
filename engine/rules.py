"""What a model's generation_config asks of every token it writes, followed as `generate` of `transformers` does."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from qlinear.errors import ModelError

# (text, logits) -> logits: a text `(length,)` so far, its prompt included, and what comes after it `(vocabulary,)`.
Adjust = Callable[[Tensor, Tensor], Tensor]

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
_DRAWN = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


class Rules:
    """Of one model. notes: what of its generation_config is not followed, in words."""

    def __init__(self, module: nn.Module, end_tokens: frozenset[int]):
        """Raises `ModelError` for a generation_config that asks for what there is not."""
        self._module = module
        given = module.generation_config
        config = deepcopy(given)
        config.update(**{name: None for name in NOT_FOLLOWED}, do_sample=False, eos_token_id=sorted(end_tokens) or None)
        config.update(**given._get_default_generation_params(), defaults_only=True)
        self._config = config
        self.notes = tuple(_not_followed(given))
        self.for_text(1, 1)

    def for_text(self, prompt_tokens: int, new_tokens: int) -> Adjust | None:
        """How the logits of one answer are adjusted; None where nothing is asked for."""
        config = deepcopy(self._config)
        config.max_length = prompt_tokens + new_tokens
        try:
            self._module._prepare_special_tokens(config, device="cpu", batch_size=1)
            found = self._module._get_logits_processor(config, prompt_tokens, device="cpu", model_kwargs={})
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(f"the model's generation_config.json: {' '.join(str(error).split())}") from error
        if not found:
            return None

        def adjust(text: Tensor, logits: Tensor) -> Tensor:
            try:
                return found(text.unsqueeze(0), logits.unsqueeze(0).cpu().clone())[0]
            except (ValueError, TypeError, RuntimeError, IndexError) as error:
                raise ModelError(f"the model's generation_config.json: {' '.join(str(error).split())}") from error

        return adjust


def _not_followed(config: Any) -> list[str]:
    notes = [
        f"the model's generation_config.json asks for {name} {getattr(config, name)}, which is not followed"
        for name, idle in NOT_FOLLOWED.items()
        if getattr(config, name, None) not in idle
    ]
    if config.do_sample:
        given = config.to_dict()
        drawn = ", ".join(f"{name} {given[name]}" for name in _DRAWN if given.get(name) is not None)
        notes.append(
            f"the model's generation_config.json asks for tokens to be drawn ({drawn or 'temperature 1.0'}); they are "
            f"where `temperature` is given"
        )
    return notes
