"""Answer prompts, one after the other, and time each."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from awq_cli.running import ModelRequest, ModelResult, described, open_model
from engine.generate import Token, generate, greedy
from engine.model import Model
from engine.sampling import sampler
from engine.stopping import Ended, StopTexts
from engine.templates import has_template
from engine.text import TextStream
from qlinear.errors import OptionError
from qlinear.progress import Watcher
from quantization.texts.files import read_file

# The ten prompts of the original command, and how much it writes after each.
PROMPTS = (
    "What is the meaning of life?",
    "Tell me something you don't know.",
    "What does Xilinx do?",
    "What is the mass of earth?",
    "What is a poem?",
    "What is recursion?",
    "Tell me a one line joke.",
    "Who is Gilgamesh?",
    "Tell me something about cryptocurrency.",
    "How did it all begin?",
)
NEW_TOKENS = 11
# After a prompt of the user's own, where the model does not end its answer before.
MOST_NEW_TOKENS = 256
# Of a prompt that is continued: what a token reads like may depend on those before it.
TAIL = 16


@dataclass(frozen=True)
class Writing:
    """How tokens are chosen, and how many. max_new_tokens: None for the task's own number."""

    max_new_tokens: int | None
    stop: tuple[str, ...]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int

    def chooser(self) -> Callable[[np.ndarray], int]:
        if self.temperature is None:
            return greedy
        return sampler(self.temperature, self.top_k, self.top_p, self.seed)


@dataclass(frozen=True)
class Request(ModelRequest):
    """prompt: empty for the original's ten; chat: whether they go through the model's chat template, None: those of
    the user do where it has one.
    """

    prompt: tuple[str, ...]
    chat: bool | None
    system: str | None
    writing: Writing


@dataclass(frozen=True)
class Answering:
    """Told of when a prompt goes in. continued: what comes out follows it, as one text."""

    prompt: str
    continued: bool


@dataclass(frozen=True)
class Piece:
    """Some more of the answer, whole characters."""

    text: str


@dataclass(frozen=True)
class Response:
    """ttft_ms: prompt in to first token out; ms_per_token: median of the tokens after it, None if there is none.

    response: the answer, or what follows the prompt where it is continued.
    """

    prompt: str
    response: str
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    ms_per_token: float | None
    ended: Ended


@dataclass(frozen=True)
class Result(ModelResult):
    """chat: whether prompts went through the model's chat template, with `system` before them if any."""

    chat: bool
    system: str | None
    responses: list[Response]


def run(request: Request, watch: Watcher) -> Result:
    prompts, writing = [read_prompt(prompt) for prompt in request.prompt] or PROMPTS, request.writing
    system = None if request.system is None else read_prompt(request.system, "system")
    StopTexts(writing.stop)
    model = open_model(request, watch)
    chat = _chats(request, model)
    encoded = [_encoded(model, prompt, system, chat) for prompt in prompts]
    longest = max(len(tokens) for tokens in encoded)
    new = _new_tokens(request, model, longest)
    model.check_fits(longest + new, f"a `prompt` of {longest} and `max_new_tokens={new}`")
    decoder, choose = model.decoder(longest + new), writing.chooser()
    responses = []
    for prompt, tokens in zip(prompts, encoded, strict=True):
        watch(Answering(prompt, continued=not chat))
        adjust = model.rules.for_text(len(tokens), new)
        written = generate(decoder, tokens, new, model.end_tokens, choose, adjust)
        pieces = TextStream(model.tokenizer) if chat else continuing(model.tokenizer, tokens)
        answer = Answer(pieces, StopTexts(writing.stop), model.end_tokens)
        responses.append(answer.told(prompt, len(tokens), written, watch))
        watch(responses[-1])
    return Result(
        **described("decode", request, model, model.rules.notes), chat=chat, system=system, responses=responses
    )


def read_prompt(prompt: str, option: str = "prompt") -> str:
    """The text itself, or what it points to: `@file`, or `-` for standard input."""
    if prompt == "-":
        try:
            return sys.stdin.read()
        except UnicodeDecodeError as error:
            raise OptionError(f"`{option}=-` is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if prompt.startswith("@"):
        return read_file(Path(prompt[1:]), f"`{option}={prompt}`", OptionError)
    return prompt


def _chats(request: Request, model: Model) -> bool:
    """Whether prompts go through the chat template; the original's ten only if asked to."""
    if request.chat is not None:
        return request.chat
    found = bool(request.prompt) and has_template(model.tokenizer)
    if request.system is not None and not found:
        raise OptionError("`system`: this model's tokenizer has no chat template to put it in; leave `system` out")
    return found


def _encoded(model: Model, prompt: str, system: str | None, chat: bool) -> Any:
    if system is None:
        return model.encode_prompt(prompt, chat)
    return model.encode_chat([{"role": "system", "content": system}, {"role": "user", "content": prompt}])


def _new_tokens(request: Request, model: Model, longest: int) -> int:
    """As many as are asked for, or else as there is room for up to the task's own number."""
    if request.writing.max_new_tokens is not None:
        return request.writing.max_new_tokens
    if not request.prompt:
        return NEW_TOKENS
    room = MOST_NEW_TOKENS if model.max_positions is None else model.max_positions - longest
    return max(1, min(MOST_NEW_TOKENS, room))


def continuing(tokenizer: Any, prompt: Sequence[int]) -> TextStream:
    """A stream of what follows a prompt, in the words that it has behind it."""
    stream = TextStream(tokenizer)
    for token in prompt[-TAIL:]:
        stream.add(int(token))
    return stream


@dataclass(frozen=True)
class Answer:
    pieces: TextStream
    stop: StopTexts
    end_tokens: frozenset[int]

    def told(self, prompt: str, prompt_tokens: int, written: Iterator[Token], watch: Watcher) -> Response:
        """The answer as it is written, told piece by piece."""
        tokens, parts = [], []

        def tell(piece: str) -> None:
            parts.append(piece)
            watch(Piece(piece))

        for token in written:
            tokens.append(token)
            tell(self.stop.add(self.pieces.add(token.id)))
            if self.stop.found:
                break
        if not self.stop.found:
            tell(self.stop.add(self.pieces.end()) + self.stop.end())
        later = [token.seconds for token in tokens[1:]]
        ended = Ended.END if tokens[-1].id in self.end_tokens else Ended.LENGTH
        return Response(
            prompt,
            "".join(parts),
            prompt_tokens,
            len(tokens),
            tokens[0].seconds * 1e3,
            median(later) * 1e3 if later else None,
            Ended.STOP if self.stop.found else ended,
        )
