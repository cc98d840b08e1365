"""Tokens a second of one model, counted as torchao's table does, in a process that does nothing else.

    python -m benchmarks.speed --checkpoint DIRECTORY
    python -m benchmarks.speed --model_name smollm2-135m-instruct --precision bf16

Prints JSON. The prompt is "Hello, my name is"; 200 tokens are written after it whatever they are; the rate is new
tokens / (prefill + decode) seconds, the mean of 5 samples after one that is not counted. Memory is the largest
resident set while they are drawn, the interpreter and its libraries included; the size is that of all stored tensors
but the embedding, unless the head is tied to it and so reads it for every token.
"""

import ctypes
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import click

PROMPT, NEW_TOKENS, SAMPLES = "Hello, my name is", 200, 5


@dataclass(frozen=True)
class Speed:
    """tok_s: the mean of the samples; tok_s_stderr: its standard error."""

    backend: str
    decoder: str
    threads: int
    tok_s: float
    tok_s_stderr: float
    samples: list[float]
    peak_rss_bytes: int
    size_bytes: int


def measure(runnable) -> Speed:
    import torch

    from awq_cli.tasks.progress import Silent
    from awq_cli.tasks.texts import encode
    from qlinear.decoder import generate

    prompt = encode(runnable.tokenizer, PROMPT, special=True)
    decoder = runnable.decoder(len(prompt) + NEW_TOKENS, Silent())
    ctypes.CDLL(None).malloc_trim(0)  # what loading left behind is not the model's
    Path("/proc/self/clear_refs").write_text("5")  # Linux: peak memory starts again from here
    rates = []
    for _ in range(1 + SAMPLES):
        run = generate(decoder, prompt, NEW_TOKENS)
        rates.append(len(run.tokens) / (run.ttft_s + sum(run.step_s)))
    counted = rates[1:]
    return Speed(
        runnable.backend,
        type(decoder).__name__,
        torch.get_num_threads(),
        mean(counted),
        stdev(counted) / SAMPLES**0.5,
        counted,
        _peak_rss_bytes(),
        _size_bytes(runnable),
    )


def _peak_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def _size_bytes(runnable) -> int:
    tied = runnable.model.config.get_text_config().tie_word_embeddings
    return runnable.model_bytes - (0 if tied else runnable.model.get_input_embeddings().weight.nbytes)


@click.command()
@click.option("--model_name", default="smollm2-135m-instruct", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "w4abf16"]), default="w4abf16", show_default=True)
@click.option("--checkpoint", type=click.Path(exists=True))
@click.option("--threads", type=click.IntRange(1))
def command(model_name: str, precision: str, checkpoint: str | None, threads: int | None) -> None:
    import torch

    from awq_cli.tasks.runner import ModelRequest, open_runnable

    if threads is not None:
        torch.set_num_threads(threads)
    request = ModelRequest(
        model_name=model_name, w_bit=4, group_size=None, awq="auto", solver=None, lm_head=False,
        checkpoint=checkpoint, precision=precision, target="cpu", device="phx", latency=(), flash_attention=True,
        trust_remote_code=False,
    )  # fmt: skip
    click.echo(json.dumps(asdict(measure(open_runnable(request)))))


if __name__ == "__main__":
    command()
