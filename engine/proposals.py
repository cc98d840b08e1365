"""What proposes tokens that a model then reads at once: which of them are its own is for the model to say."""

from typing import Any, Protocol

import numpy as np

from engine.decoder import Decoder, read_last
from engine.places import in_common
from qlinear.errors import OptionError


class Proposer(Protocol):
    """kinds: of what it may find, each as likely to be right as others of its kind."""

    kinds: int

    def find(self, text: np.ndarray) -> int | None:
        """The kind of what there is to propose after a text `(length,)`; None where there is nothing."""
        ...

    def behind(self, text: np.ndarray) -> int:
        """How many tokens of a text it would have to read before the last one."""
        ...

    def catch_up(self, text: np.ndarray) -> None:
        """Read those, of which there are some."""
        ...

    def propose(self, text: np.ndarray, count: int) -> np.ndarray:
        """Up to `count` tokens to follow the text that `find` was last asked about, ids of the model's."""
        ...


class ModelProposer:
    """`Proposer`: what a smaller model finds likeliest. Of a text that goes on, it reads what is new."""

    kinds = 1

    def __init__(self, decoder: Decoder, vocabulary: int):
        """decoder: of the smaller model; vocabulary: of the model that the tokens are for."""
        self._decoder, self._vocabulary = decoder, vocabulary
        self._held = np.empty(0, np.int64)  # what the decoder has read

    def find(self, text: np.ndarray) -> int | None:
        """None too for a text with tokens that the smaller model, of the same tokenizer, has no rows for."""
        fits = len(text) <= self._decoder.max_tokens and text.max() < self._decoder.vocabulary
        return 0 if fits else None

    def behind(self, text: np.ndarray) -> int:
        return len(text) - 1 - in_common(self._held, text[:-1])

    def catch_up(self, text: np.ndarray) -> None:
        before, known = text[:-1].copy(), len(text) - 1 - self.behind(text)
        self._held = before[:0]
        read_last(self._decoder, before, known)
        self._held = before

    def propose(self, text: np.ndarray, count: int) -> np.ndarray:
        count = min(count, self._decoder.max_tokens - len(text) + 1)
        tokens, known = np.concatenate([text, np.zeros(count, np.int64)]), len(text) - 1 - self.behind(text)
        self._held = tokens[:0]  # while it reads, an interrupt may leave anything in it
        for length in range(len(text), len(tokens)):
            tokens[length] = read_last(self._decoder, tokens[:length], known)[: self._vocabulary].argmax()
            known = length
        self._held = tokens[:known]
        return tokens[len(text) :]


def check_same_tokens(own: Any, other: Any, named: str) -> None:
    """Raise `OptionError` for tokenizers whose tokens differ; named: the other one's model."""
    here, there = _vocabulary(own), _vocabulary(other)
    differ = sorted(set(here.items()) ^ set(there.items()), key=lambda one: (one[1], one[0]))
    if differ:
        text, token = differ[0]
        whose = "this model" if here.get(text) == token else "the other"
        raise OptionError(
            f"`draft={named}` has another tokenizer than this model: only {whose} has {text!r} as token {token}; give "
            f"a checkpoint of the same family, or lookup"
        )


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    whole = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.get_vocab() if whole is None else whole.get_vocab(with_added_tokens=True)
