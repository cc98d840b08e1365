"""Requests of OpenAI's API, read and checked field by field."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from awq_cli.serving.choosing import FIELDS, Choosing, choosing
from awq_cli.serving.fields import flag, whole, wrong
from awq_cli.serving.forms import Forms
from awq_cli.serving.messages import begun_answer, is_one_of, read_messages, tells_of_calls
from awq_cli.serving.refusals import Refusal
from awq_cli.serving.thoughts import effort_shown, told_apart
from awq_cli.serving.tools import Calling, read_tools
from engine.model import Model
from engine.rules import Adjust
from engine.templates import Conversation, template_of
from engine.thoughts import Thinking, thinking_of

# Fields that ask for what is not done here, and what they are when they ask for nothing.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,), "modalities": (None, ["text"]),
    "prediction": (None,), "web_search_options": (None,), "moderation": (None,),
    # Of vLLM and llama.cpp, whose clients send them as they are by default.
    "skip_special_tokens": (None, True), "return_token_ids": (None, False), "stop_token_ids": (None, []),
    "min_tokens": (None, 0), "ignore_eos": (None, False), "use_beam_search": (None, False), "length_penalty": (None, 1),
    "repeat_penalty": (None, 1), "typical_p": (None, 1), "mirostat": (None, 0), "dry_multiplier": (None, 0),
    "xtc_probability": (None, 0), "n_probs": (None, 0),
}  # fmt: skip
# Fields that change nothing in an answer.
ASIDE = {
    "model", "user", "metadata", "store", "service_tier", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "verbosity", "cache_prompt", "id_slot",
    "keep_alive", "request_id", "session_id", "chat_id",
}  # fmt: skip
SHARED = FIELDS | {"n", "stream", "stream_options", "stop", "max_tokens", "logprobs", "response_format"}
OF_CHAT = {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "chat_template_kwargs", "reasoning_effort", "reasoning_format", "add_generation_prompt", "continue_final_message",
}  # fmt: skip
OF_COMPLETIONS = {"prompt"}
OF_STREAMS = {"include_usage", "include_obfuscation"}
COMPLETION_TOKENS = 16  # where nothing is said, as OpenAI has it
MOST_STOPS, MOST_TOP, MOST_TOP_OF_COMPLETIONS = 64, 20, 5  # OpenAI has 4 stop texts, and other servers any number
# What a template may not be given by a request, since whoever renders it takes it for something else.
RESERVED = {
    "messages", "conversation", "conversations", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """context: tokens of a prompt and its answer; answers: that there is ever room for at once; bound: whether more
    tokens than there is room for are refused, and not cut.
    """

    context: int
    answers: int
    bound: bool = True

    def without_bound(self) -> "Limits":
        return replace(self, bound=False)


@dataclass(frozen=True)
class Ask:
    """What is to be written, and how it is to be told.

    chat: whether a turn of a conversation is, and not what a text goes on with; prompt_tokens: of all prompts; choices:
    the answers, several to each prompt; top: how many likely tokens are told of beside each one; None: nor is its own
    probability; calling: how tools are called, None where none is to be; thinking: how thoughts are told apart, None
    where none are.
    """

    chat: bool
    prompt_tokens: int
    choices: tuple[Choosing, ...]
    stop: tuple[str, ...]
    stream: bool
    with_usage: bool
    top: int | None
    calling: Calling | None = None
    thinking: Thinking | None = None


def read_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise Refusal(400, "the body has to be a JSON object", code="invalid_json")
    return value


def _number(text: str) -> float:
    """Of what JSON has for numbers: what is told again has to be JSON, too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of it")
    return value


def read_chat(given: dict[str, Any], model: Model, forms: Forms, limits: Limits) -> Ask:
    """Of /v1/chat/completions. Raises `Refusal`, or `OptionError` for messages that the template does not take."""
    _check_fields(given, OF_CHAT)
    calling = read_tools(given, model.tokenizer)
    wanted = flag(given, "logprobs")
    top = whole(given, "top_logprobs", 0, MOST_TOP)
    if top is not None and not wanted:
        raise wrong("top_logprobs", "needs logprobs to be true")
    template = template_of(model.tokenizer, tools=calling is not None or tells_of_calls(given))
    messages, shown = read_messages(given, template), {"tools": calling.shown} if calling else {}
    if messages[-1]["role"] != "tool" and not messages[-1]["content"].strip():
        raise wrong(f"messages[{len(messages) - 1}].content", "is empty; give some text")
    if calling is None and template != template_of(model.tokenizer, tools=False):
        shown["tools"] = []  # none, and yet the template that knows of calls
    shown |= effort_shown(given, template) | _seen(given)
    begun = begun_answer(given, messages)
    prompt = model.encode_chat(messages, shown) if begun is None else _begun(begun, messages, shown, template, model)
    most = _most(given, "max_completion_tokens") or _most(given, "max_tokens")
    room, count = _room(prompt, most, limits, "messages"), _count(given, 1, limits)
    apart, kept = told_apart(given), _kept(given, calling, forms, count)
    free = all(form is None for form in kept)  # what is kept to a form has no thoughts in it
    if begun is not None and not free:
        raise wrong(f"messages[{len(messages) - 1}]", "cannot be gone on with where the answer is to have a form")
    thinking = thinking_of(template, prompt, model.tokenizer) if free and begun is None else None
    choices = choosing(given, prompt, room, model.vocabulary, kept)
    ask = _ask(given, len(prompt), choices, (top or 0) if wanted else None)
    thinking = thinking and replace(thinking, apart=apart)
    return replace(ask, chat=begun is None, calling=calling, thinking=thinking)


def _begun(begun: str, messages: Conversation, shown: dict[str, Any], template: str, model: Model) -> np.ndarray:
    """A prompt that ends with the beginning of an answer, which is the last of the messages."""
    prompt = model.encode_chat(messages[:-1], shown)
    thinking = thinking_of(template, prompt, model.tokenizer)
    if thinking is not None and (thinking.begun or thinking.between.parts):
        raise wrong(f"messages[{len(messages) - 1}]", "cannot be gone on with: this model is about to think there")
    return model.encode_chat(messages[:-1], shown, begun)


def read_completion(given: dict[str, Any], model: Model, forms: Forms, limits: Limits) -> Ask:
    """Of /v1/completions. Raises as `read_chat` does."""
    _check_fields(given, OF_COMPLETIONS)
    top = whole(given, "logprobs", 0, MOST_TOP_OF_COMPLETIONS)
    most = _most(given, "max_tokens")
    asked = _prompts(given.get("prompt"))
    count = _count(given, len(asked), limits)
    prompts = [_prompt(one, model) for one in asked]
    kept, choices = _kept(given, None, forms, count * len(prompts)), []
    for prompt in prompts:
        left = max(1, min(COMPLETION_TOKENS, limits.context - len(prompt)))
        room, own = _room(prompt, most or left, limits, "prompt"), [kept.pop() for _ in range(count)]
        choices += choosing(given, prompt, room, model.vocabulary, own)
    return _ask(given, sum(map(len, prompts)), choices, top)


def _most(given: dict[str, Any], name: str) -> int | None:
    """Tokens of an answer; None where nothing is said, or -1, as other servers have it."""
    return None if is_one_of(given.get(name), (None, -1)) else whole(given, name, 1, None)


def _count(given: dict[str, Any], prompts: int, limits: Limits) -> int:
    """Answers to each prompt."""
    count = whole(given, "n", 1, None) or 1
    if count * prompts > limits.answers:
        what = f"makes {count * prompts} answers, and this server takes {limits.answers} at once"
        raise wrong("prompt" if prompts > 1 else "n", what)
    return count


def _kept(given: dict[str, Any], calling: Calling | None, forms: Forms, count: int) -> list[Adjust | None]:
    """What keeps each of some answers to the form that was asked for, or that calls of tools have."""
    if calling is None or calling.schema is None:
        return forms.read(given.get("response_format"), count, () if calling is None else calling.openings)
    return forms.keeping(calling.schema, count, "tools")


def _ask(given: dict[str, Any], prompt_tokens: int, choices: list[Choosing], top: int | None) -> Ask:
    options = given.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise wrong("stream_options", "has to be an object")
    stream = flag(given, "stream")
    if options is not None and not stream:
        raise wrong("stream_options", "needs stream to be true")
    if unknown := sorted((options or {}).keys() - OF_STREAMS):
        raise wrong("stream_options", f"has {unknown[0]}, which nobody knows")
    usage, chat = flag(options or {}, "include_usage"), "messages" in given
    return Ask(chat, prompt_tokens, tuple(choices), _stop(given), stream, usage, top)


def _check_fields(given: dict[str, Any], own: set[str]) -> None:
    for name, value in given.items():
        if name in NOT_DONE:
            if not is_one_of(value, NOT_DONE[name]):
                raise Refusal(400, f"{name} is not supported here; leave it out", name, "unsupported_parameter")
        elif name not in SHARED | ASIDE | own:
            raise Refusal(400, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")


def _room(prompt: np.ndarray, most: int | None, limits: Limits, parameter: str) -> int:
    """Tokens to write: as many as are asked for, or as there is room for."""
    length, context = len(prompt), limits.context
    if most is not None and not limits.bound:
        most = max(1, min(most, context - length))
    if length >= context or length + (most or 0) > context:
        asked = f" and {most} to be written" if most else ""
        raise Refusal(
            400,
            f"This server's maximum context length is {context} tokens; {length} in the prompt{asked} are more than it "
            f"has room for",
            parameter,
            "context_length_exceeded",
        )
    return most or context - length


def _seen(given: dict[str, Any]) -> dict[str, Any]:
    """What else the template is to see, as whether a model is to think first."""
    seen = given.get("chat_template_kwargs")
    if seen is not None and not isinstance(seen, dict):
        raise wrong("chat_template_kwargs", "has to be an object")
    for name in seen or {}:
        if name in RESERVED or not name.isidentifier():
            raise wrong("chat_template_kwargs", f"cannot have {name}")
    return seen or {}


def _prompts(given: Any) -> list[Any]:
    """A text, a list of tokens, or several of either."""
    several = isinstance(given, list) and given and all(isinstance(one, str | list) for one in given)
    return given if several else [given]


def _prompt(prompt: Any, model: Model) -> np.ndarray:
    if isinstance(prompt, str):
        if not prompt:
            raise wrong("prompt", "is empty; give some text")
        return model.encode(prompt)
    if not isinstance(prompt, list) or not prompt or not all(type(token) is int for token in prompt):
        raise wrong("prompt", "has to be a text, a list of token ids, or a list of such")
    if not 0 <= min(prompt) <= max(prompt) < model.vocabulary:
        raise wrong("prompt", f"has a token that is not in [0, {model.vocabulary})")
    return np.array(prompt, np.int64)


def _stop(given: dict[str, Any]) -> tuple[str, ...]:
    stop = given.get("stop")
    texts = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(isinstance(one, str) and one for one in texts):
        raise wrong("stop", f"has to be a text or up to {MOST_STOPS} texts, none of them empty")
    return tuple(texts)
