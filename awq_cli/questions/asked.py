"""A model as lm-eval's tasks ask it: how likely is a text, and what is written after one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from engine.decoder import Decoder
from engine.generate import generate, greedy
from engine.model import Model
from engine.sampling import sampler
from engine.scoring import Scorer
from engine.stopping import StopTexts
from engine.templates import has_template
from engine.text import MarkedText, TextStream, check_rows, encode
from qlinear.errors import OptionError
from qlinear.progress import Watcher, steps

# Tokens of a text that is scored whole, where the model sets no limit: lm-eval's own number.
MOST_AT_ONCE = 2048


class LanguageModel:
    """What lm-eval's evaluator calls, of its `LM`; tells `watch` of every question answered, by the name `what`."""

    rank, world_size = 0, 1

    def __init__(self, model: Model, what: str, watch: Watcher):
        self._model, self._what, self._watch = model, what, watch
        self._tokenizer = tokenizer = model.tokenizer
        self._begins = tokenizer.special_tokens_map.get("bos_token")
        self._prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self._model.about.name

    def _encode(self, text: str, special: bool = True) -> list[int]:
        """special: with the tokens that stand around a text, unless a template has put the first there itself."""
        begun = bool(self._begins) and text.startswith(self._begins)
        tokens = encode(self._tokenizer, text, special=special and not begun)
        check_rows(self._tokenizer, tokens, self._model.vocabulary)
        return tokens.tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval parts them, spaces at the join with what follows; the first token stands for no context."""
        if context:
            return _parted(self._encode(context + continuation), len(self._encode(context.rstrip())))
        tokens = self._encode(continuation, special=False)
        return (tokens[:1], tokens[1:]) if tokens[:1] == [self._prefix] else ([], tokens)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        texts = [request.args for request in requests]
        return self._score([(pair, *self._encode_pair(*pair)) for pair in texts])

    def _score(self, requests: list[tuple[tuple[str, str], list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of texts, each with its tokens; in nats, and whether it is what greedy decoding writes."""
        pairs = [_fitted(*request, self._prefix, self._model.max_positions) for request in requests]
        longest = max(len(context) + len(continuation) - 1 for context, continuation in pairs)
        scorer = Scorer(self._model.decoder(longest, rewinds=True))
        return [scorer.log_likelihood(*pair) for pair in steps(pairs, len(pairs), self._what, self._watch)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Of whole texts, those longer than the model's context in parts."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        most, parts, counts = self._model.max_positions or MOST_AT_ONCE, [], []
        for (text,) in (request.args for request in requests):
            tokens = self._encode(text, special=False)
            windows = get_rolling_token_windows(tokens, self._prefix, most, 1)
            made = [((text, text), *make_disjoint_window(window)) for window in windows]
            parts += made
            counts.append(len(made))
        found = iter(self._score(parts) if parts else ())
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Any]) -> list[str]:
        wanted = [(text, _normal(how)) for text, how in (request.args for request in requests)]
        for _, how in wanted:
            check_room(self._model, how)
        prompts = [_prompt(self._model, self._encode(text), how["max_gen_toks"]) for text, how in wanted]
        longest = max(len(prompt) + how["max_gen_toks"] for prompt, (_, how) in zip(prompts, wanted, strict=True))
        writer = _Writer(self._model, self._model.decoder(longest, rewinds=True))
        asked = zip(prompts, (how for _, how in wanted), strict=True)
        return [writer.write(*one) for one in steps(asked, len(prompts), self._what, self._watch)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Where the last message is one to go on from, it comes after what the template makes of the others."""
        if not has_template(self._tokenizer):
            raise OptionError(f"--chat: {self._model.about.name} has no chat template; use --raw")
        said = list(chat_history)
        begun = "" if add_generation_prompt else said.pop()["content"]
        return self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) + begun


class _Writer:
    """Answers one after the other; what a prompt shares with the text before it is not read again."""

    def __init__(self, model: Model, decoder: Decoder):
        self._model, self._decoder, self._read = model, decoder, []

    def write(self, prompt: list[int], how: dict[str, Any]) -> str:
        """Up to one of the texts `until`, which is left out, or as many tokens as `max_gen_toks`."""
        shared = (a == b for a, b in zip(prompt, self._read[:-1], strict=False))  # its last token was not read
        known = min(_leading(shared), len(prompt) - 1)
        model, until, said = self._model, [text for text in how["until"] if text], ""
        stop, pieces = StopTexts(until), MarkedText(model.tokenizer, TextStream(model.tokenizer), until)
        self._read = list(prompt)
        tokens, most = np.array(prompt, np.int64), how["max_gen_toks"]
        adjust = model.rules.for_text(len(prompt), most)
        chosen = generate(self._decoder, tokens, most, model.end_tokens, _chooser(how), adjust, known=known)
        for token in chosen:
            self._read.append(token.id)
            if token.id not in model.end_tokens:
                said += stop.add(pieces.add(token.id))
            if stop.found:
                return said
        return said + stop.add(pieces.end()) + stop.end()


def _leading(equal: Iterator[bool]) -> int:
    """How many are true before the first that is not."""
    return next((at for at, same in enumerate([*equal, False]) if not same), 0)


def _chooser(how: dict[str, Any]) -> Callable[[np.ndarray], int]:
    """The likeliest, or drawn where the task asks for that; the same draws for every question."""
    if not how.get("do_sample") or not how.get("temperature"):
        return greedy
    return sampler(how["temperature"], how.get("top_k") or None, how.get("top_p"))


def check_room(model: Model, how: dict[str, Any]) -> None:
    """Raise `OptionError` for answers that a model has no room for. how: they are written, by lm-eval's names."""
    most, context = _normal(how)["max_gen_toks"], model.max_positions
    if context is not None and most >= context:
        raise OptionError(
            f"--tasks: an answer of up to {most} tokens has no room in the model's context of {context}; leave its "
            f"task out"
        )


def _normal(how: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.models.utils import normalize_gen_kwargs

    return normalize_gen_kwargs(dict(how))


def _prompt(model: Model, tokens: list[int], most: int) -> list[int]:
    """A context too long to be answered in the model's context is cut at its left, as lm-eval does."""
    return tokens if model.max_positions is None else tokens[-(model.max_positions - most) :]


def _parted(whole: Sequence[int], context: int) -> tuple[list[int], list[int]]:
    """A question's tokens and its answer's, of which there is one at least: a token may span the join of both."""
    at = max(0, min(context, len(whole) - 1))
    return list(whole[:at]), list(whole[at:])


def _fitted(
    texts: tuple[str, str], context: list[int], continuation: list[int], prefix: int | None, limit: int | None
) -> tuple[list[int], list[int]]:
    """A context too long for the model is cut at its left, as lm-eval does; the last token is not read itself.

    prefix: the token that stands for an empty context. Raises `OptionError` where one token of context is too many.
    """
    if not context and prefix is not None:
        context = [prefix]
    answer = f"{texts[1][:40]!r}"
    if not context or not continuation:
        raise OptionError(f"--tasks: the answer {answer} cannot be asked for: it has no tokens, or none before it")
    if limit is not None and len(continuation) > limit:
        raise OptionError(
            f"--tasks: an answer of {len(continuation)} tokens, {answer} and so on, has no room in the model's context "
            f"of {limit}; leave its task out"
        )
    surplus = 0 if limit is None else max(0, len(context) + len(continuation) - 1 - limit)
    return context[surplus:], continuation
