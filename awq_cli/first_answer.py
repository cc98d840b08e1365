"""One answer of a model that was just made, for whoever sits at the terminal."""

import gc
import time
from collections.abc import Iterator

import run_awq
from awq_cli.answering import Answer, Answering
from engine.generate import Token, generate
from engine.model import Model
from engine.stopping import StopTexts
from engine.templates import has_template
from engine.text import answering
from qlinear.backends.registry import open_target
from qlinear.errors import AwqError, TargetError
from qlinear.process import available_bytes
from qlinear.progress import Note, Watcher
from quantization.quantize import Result

QUESTION, OPENING = "What is a poem?", "Once upon a time"
MOST_TOKENS, MOST_SECONDS = 48, 10
# What a model takes beside its file: caches, activations, weights as they are read.
MEMORY = 1.3


def show(made: Result, trust_remote_code: bool, watch: Watcher) -> None:
    """The answer as it is written; a note where there can be none here. The checkpoint is whole either way."""
    try:
        _check_machine(made)
        model = run_awq.load(made.checkpoint, trust_remote_code=trust_remote_code, progress=watch)
        _answer(model, watch)
    except AwqError as error:
        watch(Note(f"no answer of the new model is shown: {error}"))
    except KeyboardInterrupt:  # the user has seen enough
        return


def _check_machine(made: Result) -> None:
    """Raise `TargetError` where an answer would take long, or the memory that others are using."""
    slow = open_target("cpu").note
    if slow is not None:
        raise TargetError(slow)
    gc.collect()  # the float model
    needed, there = int(made.size.quantized_bytes * MEMORY), available_bytes()
    if there is not None and needed > there:
        raise TargetError(f"it needs {needed / 1e9:.2g} GB of memory, and {there / 1e9:.2g} GB are free")


def _answer(model: Model, watch: Watcher) -> None:
    chat = has_template(model.tokenizer)
    prompt = QUESTION if chat else OPENING
    tokens = model.encode_prompt(prompt, chat)
    model.check_fits(len(tokens) + MOST_TOKENS, "a first answer")
    decoder = model.decoder(len(tokens) + MOST_TOKENS)
    watch(Answering(prompt, continued=not chat))
    adjust = model.rules.for_text(len(tokens), MOST_TOKENS)
    written = _quickly(generate(decoder, tokens, MOST_TOKENS, model.end_tokens, adjust=adjust))
    pieces = answering(model.tokenizer, tokens, chat)
    answer = Answer(pieces, StopTexts(()), model.end_tokens)
    watch(answer.told(prompt, len(tokens), written, watch))


def _quickly(written: Iterator[Token]) -> Iterator[Token]:
    began = time.monotonic()
    for token in written:
        yield token
        if time.monotonic() - began > MOST_SECONDS:
            return
