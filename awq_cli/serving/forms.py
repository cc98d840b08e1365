"""Answers of a given form: JSON that obeys a schema, token by token, by llguidance."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from awq_cli.serving.refusals import Refusal
from awq_cli.serving.schemas import closed
from engine.apart import Helper, Outcome, apart
from engine.model import Model
from engine.rules import Adjust
from qlinear.errors import one_line

FORM = "response_format"  # the field of a request that most forms are from
SECONDS = 3  # to read a schema in
REMEMBERED = 1000  # schemas that need not be tried again
EITHER = "start: "  # what a grammar begins with, and a schema does not
# As `json.dumps` writes it. Where any space may stand, a model that is undecided writes nothing else.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Forms:
    """Those that the answers of one model may have. The library comes when one is asked for."""

    def __init__(self, model: Model):
        self._model = model
        self._tokenizer: Any = None
        self._tried: set[str] = set()  # schemas that can be followed
        self._helper = Helper(_Trying(getattr(model.tokenizer, "backend_tokenizer", None), sorted(model.end_tokens)))

    def close(self) -> None:
        self._helper.close()

    def read(self, given: Any, count: int, openings: Sequence[str] = ()) -> list[Adjust | None]:
        """What keeps each of some answers to `response_format`; None for a text without one. openings: as of `keeping`.

        Raises `Refusal`.
        """
        if given is None or given == {"type": "text"}:
            return [None] * count
        kind = given.get("type") if isinstance(given, dict) else None
        if kind == "json_object" and len(given) == 1:
            return self.keeping({"type": "object"}, count, openings=openings)
        described = given.get("json_schema") if kind == "json_schema" and len(given) == 2 else None
        # As llama.cpp's server has it.
        if kind in ("json_object", "json_schema") and given.keys() == {"type", "schema"}:
            described = given
        if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
            raise _wrong(
                FORM, "has to be of type text, json_object, or json_schema with a json_schema that has a schema"
            )
        return self.keeping(described["schema"], count, openings=openings)

    def keeping(
        self, schema: dict[str, Any], count: int, field: str = FORM, openings: Sequence[str] = ()
    ) -> list[Adjust | None]:
        """What keeps each of some answers to a schema, as `closed` reads it; field: of the request, that it is from;
        openings: what an answer may begin with instead, and is free behind.

        Raises `Refusal`.
        """
        tokenizer, meant = self._opened(field), closed(schema)
        text = _either(meant, [self._marked(one) for one in openings]) if openings else json.dumps(meant)
        if text not in self._tried:
            _, failed = self._helper.ask(text)
            if failed is not None:
                raise _wrong(field, f"has a schema that cannot be followed: {' '.join(failed.split())[:300]}")
            if len(self._tried) >= REMEMBERED:
                self._tried.clear()
            self._tried.add(text)
        first = _matcher(tokenizer, text)
        return [_Keeping(first.deep_copy() if later else first, field) for later in range(count)]

    def _marked(self, text: str) -> str:
        """A text in the notation of grammars, with tokens of their own by their numbers."""
        added = self._model.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        own = {str(token): number for number, token in added.items()}
        parts = re.split(f"({'|'.join(map(re.escape, sorted(own, key=len, reverse=True)))})", text) if own else [text]
        return " ".join(f"<[{own[part]}]>" if part in own else json.dumps(part) for part in parts if part)

    def _opened(self, field: str) -> Any:
        """The library's own view of the model's tokenizer, which takes most of a second to make."""
        if self._tokenizer is not None:
            return self._tokenizer
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise _wrong(field, "needs llguidance where this server runs: pip install 'run-awq[serve]'") from error
        ends = sorted(self._model.end_tokens)
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        if backend is None or not ends:
            raise _wrong(field, "takes a model with an end token, and a tokenizer of the tokenizers library")
        try:
            self._tokenizer = LLTokenizer(backend.to_str(), eos_token=ends)
        except (ValueError, RuntimeError) as error:
            raise _wrong(field, f"takes a model with a tokenizer of bytes: {one_line(error)}") from error
        return self._tokenizer


class _Trying:
    """Whether a schema can be followed, found out in a process of its own, made of a `Helper`'s: the library ends the
    process at some, and at others does not come to an end. backend: of the tokenizer; ends: end tokens.
    """

    def __init__(self, backend: Any, ends: list[int]):
        self._backend, self._ends = backend, ends
        self._tokenizer: Any = None

    def __call__(self, schema: str) -> Outcome:
        self._opened()  # once, and not in each process that tries
        return apart(self._followed, schema, seconds=SECONDS)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tokenizer": None}

    def _opened(self) -> Any:
        from llguidance import LLTokenizer

        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(self._backend.to_str(), eos_token=self._ends)
        return self._tokenizer

    def _followed(self, schema: str) -> Outcome:
        """In the last process."""
        from llguidance import LLMatcher

        tokenizer = self._opened()
        try:
            failed, said = LLMatcher.validate_grammar_with_warnings(_grammar(schema), tokenizer)
            if not failed:
                _matcher(tokenizer, schema).compute_bitmask()
        except Exception as error:  # whatever a library of another language makes of it
            failed, said = True, [str(error)]
        return None, said[0] if failed else None


def _either(schema: dict[str, Any], openings: Sequence[str]) -> str:
    """A grammar of a text that obeys a schema, or has one of some beginnings."""
    told = json.dumps({**schema, "x-guidance": SPACING})
    return f"{EITHER}form | ({' | '.join(openings)}) <[*]>*\nform: %json {told}\n"


def _grammar(text: str) -> str:
    """Of a schema, or of `_either`."""
    from llguidance import LLMatcher

    if text.startswith(EITHER):
        return LLMatcher.grammar_from_lark(text)
    return LLMatcher.grammar_from_json_schema(text, overrides=SPACING)


def _matcher(tokenizer: Any, schema: str) -> Any:
    from llguidance import LLMatcher

    return LLMatcher(tokenizer, _grammar(schema), log_level=0)


class _Keeping:
    """`engine.rules.Adjust` of one answer: tokens that would break its form are left no probability."""

    def __init__(self, matcher: Any, field: str):
        self._matcher, self._field = matcher, field
        self._followed: int | None = None  # tokens of the text that the matcher is past

    def __call__(self, text: np.ndarray, logits: np.ndarray) -> np.ndarray:
        written = [] if self._followed is None else text[self._followed :].tolist()
        self._followed = len(text)
        self._matcher.consume_tokens(written)
        allowed = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        kept = np.zeros(len(logits), bool)
        kept[: len(allowed)] = allowed[: len(logits)]
        if self._matcher.is_error() or not kept.any():
            raise _wrong(
                self._field, f"cannot be followed any further: {' '.join(self._matcher.get_error().split())[:300]}"
            )
        return np.where(kept, logits, np.float32(-np.inf))


def _wrong(field: str, what: str) -> Refusal:
    return Refusal(400, f"{field} {what}", field, "unsupported_parameter")
