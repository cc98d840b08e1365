"""Tokens a second of one model, counted as torchao's table does, in a process that does nothing else.

\b
    python -m benchmarks.recipes.speed --checkpoint DIRECTORY --json FILE
    python -m benchmarks.recipes.speed --model_name smollm2-135m-instruct --json FILE     the float model

The prompt is "Hello, my name is"; 200 tokens are written after it whatever they are; the rate is new tokens / (prefill
+ decode) seconds, the mean of 5 samples after one that is not counted. Memory is the largest resident set while they
are drawn, the interpreter and its libraries included; the size is that of all stored tensors but the embedding, unless
the head is tied to it and so reads it for every token.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import click

import run_awq
from benchmarks import machine
from benchmarks.typed import to_json
from qlinear.backends.cpu import native
from qlinear.errors import AwqError
from qlinear.process import peak_rss_bytes, trim_heap

if TYPE_CHECKING:
    from engine.generate import Token
    from engine.model import Model

PROMPT, NEW_TOKENS, SAMPLES = "Hello, my name is", 200, 5


@dataclass(frozen=True)
class Speed:
    """tok_s: the mean of the samples; tok_s_stderr: its standard error."""

    backend: str
    decoder: str
    threads: int
    tok_s: float
    tok_s_stderr: float
    samples: tuple[float, ...]
    peak_rss_bytes: int
    size_bytes: int


def measure(model: "Model") -> Speed:
    from engine.generate import generate
    from engine.text import encode_prompt

    prompt = encode_prompt(model.tokenizer, PROMPT, chat=False)
    decoder = model.decoder(len(prompt) + NEW_TOKENS)
    trim_heap()  # what loading left behind is not the model's
    machine.forget_peak()
    rates = [rate(generate(decoder, prompt, NEW_TOKENS)) for _ in range(1 + SAMPLES)]
    counted = rates[1:]
    return Speed(
        backend=model.about.code,
        decoder=type(decoder).__name__,
        threads=native.threads(),
        tok_s=mean(counted),
        tok_s_stderr=standard_error(counted),
        samples=tuple(counted),
        peak_rss_bytes=peak_rss_bytes(),
        size_bytes=_size_bytes(model),
    )


def rate(tokens: "Iterable[Token]") -> float:
    """Tokens a second; the first one's time is that of the prompt."""
    seconds = [token.seconds for token in tokens]
    return len(seconds) / sum(seconds)


def standard_error(values: list[float]) -> float:
    """Of their mean."""
    return stdev(values) / len(values) ** 0.5


def _size_bytes(model: "Model") -> int:
    if model.about.checkpoint is None:
        config = model.module.config.get_text_config().to_dict()
    else:
        config = json.loads((Path(model.about.checkpoint) / "config.json").read_text())
    tied = config.get("tie_word_embeddings", True)
    return model.about.model_bytes - (0 if tied else 2 * config["vocab_size"] * config["hidden_size"])


@click.command(help=__doc__)
@click.option("--model_name", help="A float model.")
@click.option("--checkpoint", help="A quantized one, in its place.")
@click.option("--threads", type=click.IntRange(1), help="[default: torch's own choice]")
@click.option("--json", "json_file", required=True, type=click.Path(path_type=Path))
def main(model_name: str | None, checkpoint: str | None, threads: int | None, json_file: Path) -> None:
    if (model_name is None) == (checkpoint is None):
        raise click.UsageError("give either --model_name or --checkpoint")
    if threads is not None:
        native.set_threads(threads)
    precision = "w4abf16" if checkpoint else "bf16"
    try:
        model = run_awq.load(checkpoint or model_name, precision=precision, flash_attention=True)
    except AwqError as error:
        raise click.ClickException(str(error)) from error
    json_file.write_text(to_json(measure(model)), encoding="utf-8")


if __name__ == "__main__":
    main()
