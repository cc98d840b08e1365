"""A model of `transformers` as what runs: its stack as a whole where model and backend allow it, else its modules."""

from collections.abc import Callable

from torch import nn

from engine.decoder import Decoder
from engine.fused import CHUNK, FusedDecoder
from engine.modules import ModuleDecoder, check_causal, first_position
from engine.one_text import OneText
from engine.parts import ModuleParts
from engine.rules import ModuleRules
from engine.runner import ids
from engine.stack import describe
from qlinear.backends.base import Backend, Meter
from qlinear.backends.stack import StackDecoder, Unsupported
from qlinear.errors import TargetError


def fused_decoder(
    model: nn.Module, backend: Backend, max_tokens: int, chunk: int = CHUNK
) -> "tuple[FusedDecoder | None, str | None]":
    """A fused decoder with a cache of `max_tokens` positions; or None and the reason why there is none.

    model: a causal LM of `transformers` whose quantized layers run on `backend`. It keeps its weights, which the
    decoder reads in place.
    """
    try:
        stack = describe(model.config, ModuleParts(model), max_tokens)
        return FusedDecoder(backend.decoder(stack, max_tokens, min(chunk, max_tokens))), None
    except (Unsupported, TargetError) as reason:
        return None, str(reason)


class ModuleRunner:
    """`engine.runner.Runner`. module: its quantized layers prepared; quantized: whether it has some."""

    def __init__(self, module: nn.Module, backend: Backend, flash_attention: bool, quantized: bool = True):
        self.module, self.flash_attention = module, flash_attention
        self._backend, self._quantized = backend, quantized
        self._causal = False  # whether it was found to be

    @property
    def vocabulary(self) -> int:
        return len(self.module.get_input_embeddings().weight)

    @property
    def outputs(self) -> int:
        return self.module.get_output_embeddings().out_features

    @property
    def max_positions(self) -> int | None:
        known = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        return None if known is None else known - first_position(self.module)

    @property
    def end_tokens(self) -> frozenset[int]:
        return ids(self.module.generation_config.eos_token_id)

    @property
    def meter(self) -> Meter | None:
        return self._backend.meter() if self._quantized else None

    @property
    def float_target(self) -> str | None:
        return self._backend.float_target

    def rules(self, end_tokens: frozenset[int]) -> ModuleRules:
        return ModuleRules(self.module, end_tokens)

    def decoder(self, max_tokens: int, rewinds: bool, note: Callable[[str], None]) -> Decoder:
        if self.flash_attention and self.meter is None:  # a meter has to see every matmul
            fused, reason = fused_decoder(self.module, self._backend, max_tokens)
            if fused is not None:
                return fused
            self._check_widths(reason)
            note(f"`flash_attention` runs the model's own modules: {reason}")
        self._check_widths("`flash_attention` is off")
        return self._modules(max_tokens, self.flash_attention and not rewinds)

    def is_one_stack(self) -> bool:
        """Whether a text, if it is not too long, is read by the backend's own code, and not by the modules."""
        return (
            self.flash_attention and self.meter is None and fused_decoder(self.module, self._backend, 1)[0] is not None
        )

    def slots(self, max_tokens: int, slots: int, note: Callable[[str], None]) -> StackDecoder:
        reason = "`flash_attention` is off"
        if self.meter is not None:
            reason = f"{self._backend.name} counts what each layer would do"
        elif self.flash_attention:
            try:
                stack = describe(self.module.config, ModuleParts(self.module), max_tokens)
                return self._backend.decoder(stack, max_tokens, CHUNK, slots)
            except (Unsupported, TargetError) as unsupported:
                reason = str(unsupported)
        if slots > 1:
            note(f"one text is written at a time: {reason}")
        return OneText(self.decoder(max_tokens, True, note), CHUNK)

    def _check_widths(self, reason: str | None) -> None:
        """Raise `TargetError` where the modules' own cache and head would take the place of those asked for."""
        for option, bits in (("kv_bits", self._backend.widths.kv), ("head_bits", self._backend.widths.head)):
            if bits != 16:
                raise TargetError(f"`{option}={bits}` takes a model whose stack is run as a whole: {reason}; use 16")

    def _modules(self, max_tokens: int, static_cache: bool) -> ModuleDecoder:
        if not self._causal:
            check_causal(self.module)
            self._causal = True
        return ModuleDecoder(self.module, max_tokens, static_cache=static_cache)
