"""What a model runs on: its modules, or the parts of its stack alone. `engine.model.Model` asks nothing else of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from engine.decoder import Decoder
from engine.rules import Rules
from qlinear.backends.stack import StackDecoder

if TYPE_CHECKING:
    from qlinear.backends.base import Meter


class Runner(Protocol):
    """vocabulary: tokens that the model has a row for; outputs: tokens that it predicts; max_positions: the longest
    sequence that it was made for, None where nobody says; end_tokens: those that end an answer, by its own files;
    meter: counts what hardware that is only emulated would have done, None where it is real; float_target: as of
    `qlinear.backends.base.Backend`; flash_attention: whether the whole stack is run at once where that can be.
    """

    vocabulary: int
    outputs: int
    max_positions: int | None
    end_tokens: frozenset[int]
    meter: "Meter | None"
    float_target: str | None
    flash_attention: bool

    def rules(self, end_tokens: frozenset[int]) -> Rules: ...

    def decoder(self, max_tokens: int, rewinds: bool, note: Callable[[str], None]) -> Decoder:
        """A new decoder for texts of up to `max_tokens`; rewinds: whether many of them are going to begin alike;
        note: told what the user should know. Raises `ModelError` for a model that is no causal one.
        """
        ...

    def slots(self, max_tokens: int, slots: int, note: Callable[[str], None]) -> StackDecoder:
        """One for as many texts of up to `max_tokens` at once; of a model that is not run as a whole stack, for one."""
        ...


def ids(given: object) -> frozenset[int]:
    """Token ids of a config's field: one, several, or none."""
    return frozenset(one for one in (given if isinstance(given, list) else [given]) if one is not None)
