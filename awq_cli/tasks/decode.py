"""Answer prompts, one after the other, and time each."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from awq_cli.running import ModelRequest, ModelResult, described, open_model
from engine.generate import Token, generate, greedy
from engine.sampling import sampler
from engine.text import TextStream, decode
from qlinear.errors import OptionError
from qlinear.progress import Watcher
from quantization.texts.files import read_file

# The ten prompts of the original command.
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


@dataclass(frozen=True)
class Writing:
    max_new_tokens: int
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
    prompt: tuple[str, ...]
    chat: bool
    writing: Writing


@dataclass(frozen=True)
class Answering:
    """Told of when a prompt goes in."""

    prompt: str


@dataclass(frozen=True)
class Piece:
    """Some more of the answer, whole characters."""

    text: str


@dataclass(frozen=True)
class Response:
    """ttft_ms: prompt in to first token out; ms_per_token: median of the tokens after it, None if there is none."""

    prompt: str
    response: str
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float
    ms_per_token: float | None


@dataclass(frozen=True)
class Result(ModelResult):
    responses: list[Response]


def run(request: Request, watch: Watcher) -> Result:
    prompts = [_read(prompt) for prompt in request.prompt] or PROMPTS
    model = open_model(request, watch)
    encoded = [model.encode_prompt(prompt, request.chat) for prompt in prompts]
    longest, new = max(len(tokens) for tokens in encoded), request.writing.max_new_tokens
    model.check_fits(longest + new, f"a `prompt` of {longest} and `max_new_tokens={new}`")
    decoder, choose = model.decoder(longest + new), request.writing.chooser()
    responses = []
    for prompt, tokens in zip(prompts, encoded, strict=True):
        watch(Answering(prompt))
        adjust = model.rules.for_text(len(tokens), new)
        written = generate(decoder, tokens, new, model.end_tokens, choose, adjust)
        responses.append(_answer(model.tokenizer, prompt, len(tokens), written, watch))
        watch(responses[-1])
    return Result(**described("decode", request, model, model.rules.notes), responses=responses)


def _read(prompt: str) -> str:
    """The prompt itself, or what it points to: `@file`, or `-` for standard input."""
    if prompt == "-":
        try:
            return sys.stdin.read()
        except UnicodeDecodeError as error:
            raise OptionError(f"`prompt=-` is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if prompt.startswith("@"):
        return read_file(Path(prompt[1:]), f"`prompt={prompt}`", OptionError)
    return prompt


def _answer(tokenizer: Any, prompt: str, prompt_tokens: int, written: Iterator[Token], watch: Watcher) -> Response:
    """The answer as it is written, told piece by piece."""
    pieces, tokens = TextStream(tokenizer), []
    for token in written:
        tokens.append(token)
        watch(Piece(pieces.add(token.id)))
    watch(Piece(pieces.end()))
    later = [token.seconds for token in tokens[1:]]
    return Response(
        prompt,
        decode(tokenizer, [token.id for token in tokens]),
        prompt_tokens,
        len(tokens),
        tokens[0].seconds * 1e3,
        median(later) * 1e3 if later else None,
    )
