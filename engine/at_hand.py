"""A stack on the cpu's kernels as what runs, of which nothing needs torch or `transformers`."""

from collections.abc import Callable, Mapping
from typing import Any

from engine.decoder import Decoder
from engine.fused import CHUNK, FusedDecoder
from engine.rules import PlainRules, Rules
from engine.runner import Runner, ids
from engine.stack import Parts, describe
from qlinear.backends.cpu.decoder import CpuDecoder
from qlinear.backends.cpu.limits import check
from qlinear.backends.stack import Stack, StackDecoder, Unsupported


class StackRunner:
    """`engine.runner.Runner`.

    config: of config.json; generation: of generation_config.json; parts: the weights; open_whole: opens the same model
    as modules, for what the stack cannot do.
    """

    meter = None
    float_target = None
    flash_attention = True

    def __init__(self, config: Any, generation: Mapping[str, Any], parts: Parts, open_whole: Callable[[], Runner]):
        """Lays all weights out. Raises `Unsupported` for a model that is not known well enough."""
        self._config, self._parts, self._open_whole = config, parts, open_whole
        self._whole: Runner | None = None
        self._rules = PlainRules(generation)
        self.vocabulary = self.outputs = config.vocab_size
        self.max_positions = config.max_position_embeddings
        given = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
        self.end_tokens = ids(given)
        if not all(type(token) is int for token in self.end_tokens):
            raise Unsupported("its eos_token_id is no token's number")
        check(self.describe(1))

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
                return FusedDecoder(CpuDecoder(self.describe(max_tokens), max_tokens, min(CHUNK, max_tokens)))
            except Unsupported:  # of longer texts, say
                pass
        return self._as_whole().decoder(max_tokens, rewinds, note)

    def slots(self, max_tokens: int, slots: int, note: Callable[[str], None]) -> StackDecoder:
        if self._whole is None:
            try:
                return CpuDecoder(self.describe(max_tokens), max_tokens, CHUNK, slots)
            except Unsupported:
                pass
        return self._as_whole().slots(max_tokens, slots, note)

    def _as_whole(self) -> Runner:
        if self._whole is None:
            self._whole = self._open_whole()
        return self._whole
