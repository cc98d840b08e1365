"""How the tokens of an answer are chosen: the likeliest or drawn, and some made more or less likely before."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from awq_cli.serving.fields import number, whole, wrong
from engine.generate import greedy
from engine.rules import Adjust, both
from engine.sampling import sampler

FIELDS = {
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias",
}  # fmt: skip
MOST_PENALTY, MOST_BIAS = 2, 100  # either way, as OpenAI has them
LEAST_FACTOR = 0.01


@dataclass(frozen=True)
class Choosing:
    """Of one answer: see `engine.generate`. prompt: ids `(length,)`; repetition_penalty: in the place of the model's
    own, None to leave that.
    """

    prompt: np.ndarray
    max_new_tokens: int
    repetition_penalty: float | None
    choose: Callable[[np.ndarray], int]
    adjust: Adjust | None


def choosing(
    given: dict[str, Any], prompt: np.ndarray, room: int, vocabulary: int, forms: Sequence[Adjust | None]
) -> list[Choosing]:
    """Of the answers to a prompt. room: tokens of each; forms: what keeps each to the form that was asked for.

    Raises `Refusal` for fields out of range.
    """
    weighed, again = _weighing(given, len(prompt), vocabulary), number(given, "repetition_penalty", LEAST_FACTOR, 2)
    choosers = _choosers(given, len(forms))
    return [
        Choosing(prompt, room, again, choose, both(weighed, form)) for choose, form in zip(choosers, forms, strict=True)
    ]


def _choosers(given: dict[str, Any], count: int) -> list[Callable[[np.ndarray], int]]:
    """One for each of several answers. As OpenAI has it, tokens are drawn at a temperature of 1 where nothing is said;
    at 0 the likeliest are taken.
    """
    temperature, top_p = number(given, "temperature", 0, 2), number(given, "top_p", 0, 1)
    top_k, min_p = whole(given, "top_k", -1, None), number(given, "min_p", 0, 1)
    seed = whole(given, "seed", -(2**63), 2**63 - 1)
    if temperature == 0:
        return [greedy] * count
    first = secrets.randbits(63) if seed is None else seed
    return [
        sampler(
            1.0 if temperature is None else temperature,
            top_k if top_k is not None and top_k > 0 else None,  # 0 and -1 ask for nothing in other servers
            None if top_p in (None, 1) else max(top_p, 1e-9),  # of 0, the likeliest token is left
            seed=(first + later) % 2**64,
            min_p=min_p,
        )
        for later in range(count)
    ]


def _weighing(given: dict[str, Any], prompt_tokens: int, vocabulary: int) -> Adjust | None:
    """What OpenAI's penalties and biases make of logits; None if nothing is asked.

    A token that was written before is taken the one penalty, and the other for each time that it was; the prompt does
    not count. Raises `Refusal`.
    """
    once = number(given, "presence_penalty", -MOST_PENALTY, MOST_PENALTY) or 0.0
    each = number(given, "frequency_penalty", -MOST_PENALTY, MOST_PENALTY) or 0.0
    tokens, biases = _biases(given.get("logit_bias"), vocabulary)
    return _Weighing(prompt_tokens, once, each, tokens, biases) if once or each or len(tokens) else None


def _biases(given: Any, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    if given is not None and not isinstance(given, dict):
        raise wrong("logit_bias", "has to be an object of token ids and numbers")
    found: dict[int, float] = {}
    for name in given or {}:
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 20 else -1
        if not 0 <= token < vocabulary:
            raise wrong("logit_bias", f"has a token that is not in [0, {vocabulary})")
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_BIAS:
            raise wrong("logit_bias", f"has a value that is no number, {-MOST_BIAS} to {MOST_BIAS}")
        found[token] = value
    return np.array(list(found), np.int64), np.array(list(found.values()), np.float32)


@dataclass(frozen=True)
class _Weighing:
    prompt_tokens: int
    once: float
    each: float
    tokens: np.ndarray
    biases: np.ndarray

    def __call__(self, text: np.ndarray, logits: np.ndarray) -> np.ndarray:
        weighed = logits.copy()
        written, times = np.unique(text[self.prompt_tokens :], return_counts=True)
        weighed[written] -= (self.once + self.each * times).astype(np.float32)
        weighed[self.tokens] += self.biases
        return weighed
