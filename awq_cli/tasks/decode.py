"""Answer prompts, one after the other or at once, and time each."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from awq_cli.answering import Answer, Answering, Piece, Response, write_at_once
from awq_cli.running import ModelRequest, ModelResult, described, open_model
from engine.batching import Asked
from engine.decoder import Decoder
from engine.drafting import Drafting
from engine.fused import FusedDecoder
from engine.generate import generate, greedy
from engine.model import Model
from engine.sampling import sampler
from engine.stopping import Ended, StopTexts
from engine.templates import has_template
from engine.text import answering
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
# Prompts that are answered together where nobody reads along.
AT_ONCE = 8


@dataclass(frozen=True)
class Writing:
    """How tokens are chosen, and how many. max_new_tokens: None for the task's own number."""

    max_new_tokens: int | None
    stop: tuple[str, ...]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int

    def chooser(self) -> Callable[[np.ndarray], int]:
        if self.temperature is None:
            return greedy
        return sampler(self.temperature, self.top_k, self.top_p, self.seed, self.min_p)


@dataclass(frozen=True)
class Request(ModelRequest):
    """prompt: empty for the original's ten; chat: whether they go through the model's chat template, None: those of
    the user do where it has one.
    """

    prompt: tuple[str, ...]
    chat: bool | None
    system: str | None
    writing: Writing
    draft: str | None


@dataclass(frozen=True)
class Result(ModelResult):
    """chat: whether prompts went through the model's chat template, with `system` before them if any."""

    chat: bool
    system: str | None
    responses: list[Response]


def run(request: Request, watch: Watcher) -> Result:
    prompts = [read_prompt(prompt) for prompt in request.prompt] or PROMPTS
    system = None if request.system is None else read_prompt(request.system, "system")
    StopTexts(request.writing.stop)
    model = open_model(request, watch, request.draft)
    chat = _chats(request, model)
    encoded = [_encoded(model, prompt, system, chat) for prompt in prompts]
    asked = [_asked(request, model, tokens) for tokens in encoded]
    decoder = model.decoder(max(map(_length, asked)))
    draft = model.draft(decoder)
    draftings = [draft and draft.for_text() for _ in prompts]
    answers = [_answer(request, model, one, chat, drafting) for one, drafting in zip(asked, draftings, strict=True)]
    together = draft is None and _write_at_once(model, decoder, asked, answers)
    responses = []
    for prompt, one, answer, drafting in zip(prompts, asked, answers, draftings, strict=True):
        watch(Answering(prompt, continued=not chat))
        if together:
            responses.append(answer.response(prompt, len(one.prompt)))
            watch(Piece(responses[-1].response))
        else:
            if not decoder.same_in_any_room and decoder.max_tokens != _length(one):
                decoder = model.decoder(_length(one))
            written = generate(
                decoder, one.prompt, one.max_new_tokens, one.end_tokens, one.choose, one.adjust, drafting=drafting
            )
            responses.append(answer.told(prompt, len(one.prompt), written, watch))
        watch(responses[-1])
    return Result(
        **described("decode", request, model, model.rules.notes), chat=chat, system=system, responses=responses
    )


def _asked(request: Request, model: Model, tokens: np.ndarray) -> Asked:
    """Raises `OptionError` for a prompt that leaves no room for its answer."""
    new = _new_tokens(request, model, len(tokens))
    model.check_fits(len(tokens) + new, f"a `prompt` of {len(tokens)} and `max_new_tokens={new}`")
    adjust = model.rules.for_text(len(tokens), new)
    return Asked(tokens, new, model.end_tokens, request.writing.chooser(), adjust)


def _length(asked: Asked) -> int:
    """Of a prompt and its answer."""
    return len(asked.prompt) + asked.max_new_tokens


def _answer(request: Request, model: Model, asked: Asked, chat: bool, drafting: Drafting | None) -> Answer:
    stop = request.writing.stop
    pieces = answering(model.tokenizer, asked.prompt, chat, stop)
    wanted = asked.max_new_tokens == (request.writing.max_new_tokens or _most(request))
    cut = Ended.LENGTH if wanted else Ended.CONTEXT
    return Answer(pieces, StopTexts(stop), model.end_tokens, drafting, cut)


def _write_at_once(model: Model, decoder: Decoder, asked: list[Asked], answers: list[Answer]) -> bool:
    """Whether they were: where nobody reads along, and a step of several tokens costs little more than one of one.

    The tokens are those that each prompt has alone.
    """
    if len(asked) < 2 or not isinstance(decoder, FusedDecoder) or sys.stdout.isatty():
        return False
    slots = model.slots(decoder.max_tokens, min(len(asked), AT_ONCE))
    if slots.slots > 1:
        write_at_once(slots, asked, answers)
    return slots.slots > 1


def read_prompt(prompt: str, option: str = "prompt") -> str:
    """The text itself, or what it points to: `@file`, or `-` for standard input."""
    if prompt == "-":
        if sys.stdin is None:
            raise OptionError(f"`{option}=-`: there is no standard input")
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


def _new_tokens(request: Request, model: Model, prompt_tokens: int) -> int:
    """As many as are asked for, or else as there is room for up to the task's own number."""
    if request.writing.max_new_tokens is not None:
        return request.writing.max_new_tokens
    most = _most(request)
    room = most if model.max_positions is None else model.max_positions - prompt_tokens
    return max(1, min(most, room)) if request.prompt else most


def _most(request: Request) -> int:
    """The task's own number."""
    return MOST_NEW_TOKENS if request.prompt else NEW_TOKENS
