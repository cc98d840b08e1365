"""A stack on the cpu's kernels as what runs, of which nothing needs torch or `transformers`."""

from collections.abc import Callable, Mapping
from typing import Any

from engine.decoder import Decoder
from engine.fused import CHUNK, FusedDecoder
from engine.rules import PlainRules, Rules
from engine.runner import Runner, ids
from engine.stack import Parts, describe
from qlinear.backends.cpu.decoder import CpuDecoder
from qlinear.backends.cpu.limits import inner_size
from qlinear.backends.stack import Mixture, Stack, StackDecoder, Unsupported
from qlinear.backends.widths import Widths


class StackRunner:
    """`engine.runner.Runner`.

    config: of config.json; generation: of generation_config.json; parts: the weights; open_whole: opens the same model
    as modules, for what the stack cannot do; widths: of what it holds.
    """

    meter = None
    float_target = None
    flash_attention = True

    def __init__(
        self,
        config: Any,
        generation: Mapping[str, Any] | None,
        parts: Parts,
        open_whole: Callable[[], Runner],
        widths: Widths = Widths(),
    ):
        """Lays all weights out. Raises `Unsupported` for a model that is not known well enough."""
        self._config, self._parts, self._open_whole, self._widths = config, parts, open_whole, widths
        self._whole: Runner | None = None
        self._rules = PlainRules(generation or {})
        self.vocabulary = self.outputs = config.vocab_size
        self.max_positions = config.max_position_embeddings
        if type(self.max_positions) is not int:
            raise Unsupported("its max_position_embeddings is no number")
        given = getattr(config, "eos_token_id", None) if generation is None else generation.get("eos_token_id")
        self.end_tokens = ids(given)
        if not all(type(token) is int for token in self.end_tokens):
            raise Unsupported("its eos_token_id is no token's number")
        stack = self.describe(1)
        _check_sizes(stack, config)
        CpuDecoder(stack, 1, 1)  # raises where a number is none

    @property
    def module(self) -> Any:
        """The model of `transformers`, which is opened when it is first asked for."""
        return self._as_whole().module

    def describe(self, max_tokens: int) -> Stack:
        """The stack for texts of up to so many tokens. Raises `Unsupported`."""
        return describe(self._config, self._parts, max_tokens)

    def rules(self, end_tokens: frozenset[int]) -> Rules:
        return self._rules

    def decoder(self, max_tokens: int, rewinds: bool, note: Callable[[str], None]) -> Decoder:
        if self._whole is None:
            try:
                return FusedDecoder(self._stack_decoder(max_tokens, min(CHUNK, max_tokens)))
            except Unsupported:  # of longer texts, say
                pass
        return self._as_whole().decoder(max_tokens, rewinds, note)

    def slots(self, max_tokens: int, slots: int, note: Callable[[str], None]) -> StackDecoder:
        if self._whole is None:
            try:
                return self._stack_decoder(max_tokens, CHUNK, slots)
            except Unsupported:
                pass
        return self._as_whole().slots(max_tokens, slots, note)

    def _stack_decoder(self, max_tokens: int, chunk: int, slots: int = 1) -> CpuDecoder:
        return CpuDecoder(self.describe(max_tokens), max_tokens, chunk, slots, self._widths)

    def _as_whole(self) -> Runner:
        if self._whole is None:
            self._whole = self._open_whole()
        return self._whole


def _check_sizes(stack: Stack, config: Any) -> None:
    """Raise `Unsupported` for weights that fit each other and not the config: they are another model's."""
    inner = {inner_size(block.mlp) for block in stack.blocks if not isinstance(block.mlp, Mixture)}
    if stack.vocabulary != config.vocab_size:
        raise Unsupported("the config and the weights do not agree on the vocabulary")
    if inner and inner != {config.intermediate_size}:
        raise Unsupported("the config and the weights do not agree on the size of the MLP")
