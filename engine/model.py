"""A model that runs: text in, text out, and the numbers behind it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.decoder import Decoder, read_all
from engine.drafting import Draft
from engine.generate import generate, greedy
from engine.lookup import Lookup
from engine.proposals import ModelProposer, Proposer, check_same_tokens
from engine.rules import Rules
from engine.runner import Runner, ids
from engine.sampling import sampler
from engine.templates import NOTHING, Conversation, Render, Renderer, Seen
from engine.text import MarkedText, answering, check_rows, encode_chat, encode_prompt, encode_whole
from engine.worth import Worth
from qlinear.backends.stack import StackDecoder
from qlinear.errors import OptionError
from qlinear.progress import Note, Watcher
from qlinear.values import check_choice, check_switch, check_whole, check_words

if TYPE_CHECKING:
    from torch import Tensor

    from qlinear.backends.base import Meter


@dataclass(frozen=True)
class About:
    """What is known of a model.

    name: of the model or of its checkpoint; code: what runs its layers, as results call it; precision: "w4abf16",
    "w4aint8" where activations are rounded to int8, or "bf16" for a float model; model_bytes: as stored; checkpoint:
    its directory, None for a float model; fingerprint: of the float model, or of the one a checkpoint says it was made
    from; origin: the name of that one; notes: what the user should know of the target.
    """

    name: str
    code: str
    precision: str
    model_bytes: int
    checkpoint: str | None = None
    fingerprint: str | None = None
    origin: str | None = None
    notes: tuple[str, ...] = ()


class Model:
    """A causal language model on its target, quantized or float. Not for use from two threads at once.

    about: what is known of it; runner: what it runs on; tokenizer: its own.
    """

    def __init__(self, about: About, runner: Runner, tokenizer: Any, watch: Watcher):
        self.about, self.runner, self.tokenizer = about, runner, tokenizer
        self._watch = watch
        self._kept: list[tuple[Decoder, int]] = []  # a decoder that nobody uses, and its positions
        self._rendered: Render | None = None
        self._proposer: Callable[[int], Proposer] | None = None  # of so many tokens
        self._worth: Worth | None = None
        self.kv_bytes: int | None = None  # of the largest cache so far; None: of none, or of what modules keep

    def __repr__(self) -> str:
        return f"Model({self.about.name!r} on {self.about.code})"

    @property
    def module(self) -> Any:
        """The model of `transformers`, its quantized layers prepared; where nothing needed it, it is opened now."""
        return self.runner.module

    @property
    def flash_attention(self) -> bool:
        """Whether the whole stack is run at once where model and target allow it."""
        return self.runner.flash_attention

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model was made for, or None if its config does not say."""
        return self.runner.max_positions

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.runner.end_tokens | ids(self.tokenizer.eos_token_id)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has a row for."""
        return self.runner.vocabulary

    @cached_property
    def rules(self) -> Rules:
        """What its generation_config asks of every token; what of it is not followed is noted, once."""
        rules = self.runner.rules(self.end_tokens)
        for note in rules.notes:
            self._note(note)
        return rules

    @property
    def meter(self) -> "Meter | None":
        """Counts what hardware that is only emulated would have done; None where the hardware is real."""
        return self.runner.meter

    def decoder(self, max_tokens: int, rewinds: bool = False) -> Decoder:
        """A new decoder for texts of up to `max_tokens`; rewinds: whether many of them are going to begin alike.

        With flash attention it runs the whole stack at once, where model and target allow it. Raises `ModelError` for
        a model that is no causal one.
        """
        max_tokens = _room(max_tokens)
        made = self.runner.decoder(max_tokens, rewinds, self._note)
        self._count_cache(made.nbytes)
        return made

    def slots(self, max_tokens: int, slots: int) -> StackDecoder:
        """A new decoder for as many texts of up to `max_tokens` at once, or, as its `slots` then says, for one."""
        max_tokens = _room(max_tokens)
        made = self.runner.slots(max_tokens, slots, self._note)
        self._count_cache(made.nbytes)
        return made

    def _count_cache(self, nbytes: int) -> None:
        self.kv_bytes = max(self.kv_bytes or 0, nbytes) or None

    def propose_by_lookup(self) -> None:
        """Have tokens proposed out of the text so far."""
        self._proposer, self._worth = lambda max_tokens: Lookup(), Worth(Lookup.kinds)

    def propose_by(self, other: "Model") -> None:
        """Have tokens proposed by a smaller model. Raises `OptionError` for one with other tokens."""
        check_same_tokens(self.tokenizer, other.tokenizer, other.about.checkpoint or other.about.name)

        def proposer(max_tokens: int) -> Proposer:
            room = min(max_tokens, other.max_positions or max_tokens)
            return ModelProposer(other.decoder(room, rewinds=True), self.vocabulary)

        self._proposer, self._worth = proposer, Worth(ModelProposer.kinds)

    def draft(self, decoder: Decoder | StackDecoder) -> Draft | None:
        """What proposes tokens to a decoder of this model; None where nothing was asked to.

        Raises `OptionError` where tokens might then be others than without.
        """
        if self._proposer is None or self._worth is None:
            return None
        if not decoder.same_in_any_cut:
            raise OptionError(
                f"`draft` takes a model whose stack is run as a whole on the cpu, where a token's bits do not depend "
                f"on what is read with it; that of {self.about.name} is not: leave `draft` out"
            )
        return Draft(self._proposer(decoder.max_tokens), self._worth)

    def _note(self, text: str) -> None:
        self._watch(Note(text))

    def encode(self, text: str, bos: bool | None = None) -> np.ndarray:
        """Token ids `(length,)` of a text to be scored, as `encode_whole` makes them, each with a row in the model."""
        check_words("text", text)
        tokens = encode_whole(self.tokenizer, text, bos)
        check_rows(self.tokenizer, tokens, self.vocabulary)
        return tokens

    def encode_prompt(self, prompt: str, chat: bool) -> np.ndarray:
        """Token ids `(length,)` of a prompt, each with a row in the model."""
        tokens = encode_prompt(self.tokenizer, prompt, chat)
        check_rows(self.tokenizer, tokens, self.vocabulary)
        return tokens

    def encode_chat(self, messages: Conversation, seen: Seen = NOTHING, begun: str = "") -> np.ndarray:
        """Token ids `(length,)` of messages put through the model's chat template, each with a row in the model; begun:
        of the answer to them.
        """
        tokens = encode_chat(self.tokenizer, messages, self._rendered, seen, begun)
        check_rows(self.tokenizer, tokens, self.vocabulary)
        return tokens

    @contextmanager
    def rendering_apart(self) -> Iterator[None]:
        """Inside the `with`, threads may be started: chat templates are rendered by a helper from before them."""
        self._rendered = renderer = Renderer(self.tokenizer)
        try:
            yield
        finally:
            self._rendered = None
            renderer.close()

    def check_fits(self, tokens: int, what: str) -> None:
        """Raise `OptionError` if what is asked for is longer than the model's context."""
        if self.max_positions is not None and tokens > self.max_positions:
            raise OptionError(
                f"{what} need {tokens} tokens, more than the model's context of {self.max_positions}; ask for fewer"
            )

    def stream(
        self, prompt: str, *, chat: bool = False, max_new_tokens: int = 128, seed: int = 0, **sampling: float | None
    ) -> Iterator[str]:
        """The answer to a prompt, in pieces of whole characters as they are written.

        It is what the text goes on with, a space at its beginning included; in a chat, a turn of its own.
        chat: put the prompt through the model's chat template. Without more, the likeliest tokens are taken;
        `temperature`, with `top_k`, `top_p` and `min_p` (see `engine.sampling`), draws them, the same for a seed.
        Raises `OptionError` for a prompt that is empty or, with its answer, too long for the model.
        """
        max_new_tokens, chat = check_whole("max_new_tokens", max_new_tokens, least=1), check_switch("chat", chat)
        check_whole("seed", seed, least=0)
        tokens = self.encode_prompt(prompt, chat)
        self.check_fits(
            len(tokens) + max_new_tokens, f"a `prompt` of {len(tokens)} and `max_new_tokens={max_new_tokens}`"
        )
        given = {name: value for name, value in sampling.items() if value is not None}
        pieces = answering(self.tokenizer, tokens, chat)
        return self._written(pieces, tokens, max_new_tokens, sampler(seed=seed, **given) if given else greedy)

    def _written(
        self, pieces: MarkedText, tokens: np.ndarray, max_new_tokens: int, choose: Callable[[np.ndarray], int]
    ) -> Iterator[str]:
        with self._with_room(len(tokens) + max_new_tokens) as decoder:
            adjust, draft = self.rules.for_text(len(tokens), max_new_tokens), self.draft(decoder)
            drafting = draft and draft.for_text()
            for token in generate(decoder, tokens, max_new_tokens, self.end_tokens, choose, adjust, drafting=drafting):
                if piece := pieces.add(token.id):
                    yield piece
        if piece := pieces.end():
            yield piece

    def generate(self, prompts: Sequence[str], **how: Any) -> list[str]:
        """The whole answers to prompts, one after the other; what else is given is as for `stream`."""
        if isinstance(prompts, str) or not isinstance(prompts, Iterable):
            raise OptionError("`prompts` has to be a list of texts; for one text, give a list of one")
        return ["".join(self.stream(prompt, **how)) for prompt in prompts]

    def logits(self, tokens: "Tensor | Sequence[int]") -> "Tensor":
        """Logits `(length, vocabulary)` float32 after every token of a text `(length,)`, each from its past alone."""
        given = _token_ids(tokens, self.vocabulary)
        self.check_fits(len(given), "the tokens")
        with self._with_room(len(given)) as decoder:
            found = read_all(decoder, given)
        import torch

        return torch.from_numpy(found)

    def perplexity(self, text: str, window: int = 2048, n_windows: int | None = None, bos: bool | None = None) -> float:
        """Token perplexity of a text in windows that do not overlap, the first `n_windows` of them or all.

        bos: whether the token for the beginning of a text stands before the text, once; None: as the tokenizer has it.
        Raises `OptionError` for a window longer than the text or the model's context.
        """
        from engine import scoring

        window = check_whole("window", window, least=2)
        bos = check_choice("bos", bos, (None, False, True))
        self.check_fits(window, "windows of `window`")
        windows = scoring.cut_windows(self.encode(text, bos), window, n_windows, "the text")
        with self._with_room(window) as decoder:
            total = sum(scoring.negative_log_likelihood(decoder, one) for one in windows)
        return scoring.perplexity(total, windows)

    @contextmanager
    def _with_room(self, tokens: int) -> Iterator[Decoder]:
        """A decoder for a text of that length, inside the `with` nobody else's: two streams may be open at once."""
        decoder, room = self._kept.pop() if self._kept else (None, 0)
        if decoder is None or room < tokens or (room > tokens and not decoder.same_in_any_room):
            decoder, room = self.decoder(tokens), tokens
        try:
            yield decoder
        finally:
            self._kept[:] = [(decoder, room)]


def _token_ids(tokens: "Tensor | Sequence[int]", vocabulary: int) -> np.ndarray:
    """Token ids `(length,)` int64. Raises `OptionError` for none, or for what is no list of such numbers."""
    try:
        given = np.asarray(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError("`tokens` have to be one list of token ids") from error
    if given.ndim != 1 or len(given) == 0:
        raise OptionError(f"`tokens` have to be one list of token ids, not of shape {given.shape}")
    if given.dtype.kind not in "iu":
        raise OptionError("`tokens` have to be one list of token ids, which are whole numbers")
    if int(given.min()) < 0 or int(given.max()) >= vocabulary:
        raise OptionError(f"`tokens` have to be from 0 to {vocabulary - 1}, as those of this model are")
    return given.astype(np.int64)


def _room(max_tokens: int) -> int:
    return check_whole("max_tokens", max_tokens, least=1)
