"""What activations rounded to int8 cost in quality and are worth in speed: docs/int8.md.

\b
    python -m benchmarks.int8 --checkpoint DIR --checkpoint ANOTHER --dataset FILE --docs

A checkpoint with --dataset scores the text's windows as it is (w4abf16), with int8 (w4aint8), and, with --float_model,
as the float model; a checkpoint named by --speed reads a prompt and writes after it, as it is and with int8 in turns.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np

import run_awq
from benchmarks.docs import DOCS, between
from benchmarks.machine import processor
from benchmarks.table import Table
from engine.decoder import Decoder, read_last
from engine.model import Model
from engine.scoring import Comparison, compare, cut_windows, exponential
from qlinear.backends.cpu import native

PAGE = DOCS / "int8.md"
BEGIN, END = "<!-- begin: python -m benchmarks.int8 --docs -->", "<!-- end -->"
EXACT, INT8 = "w4abf16", "w4aint8"


@dataclass(frozen=True)
class Speed:
    """Seconds and processor seconds of a prompt, and of a token after it."""

    prompt: tuple[float, float]
    token: tuple[float, float]


def timed(work) -> tuple[float, float]:
    start, before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - before


def one_round(decoder: Decoder, text: np.ndarray, prompt: int) -> Speed:
    def write() -> None:
        for known in range(prompt, len(text)):
            read_last(decoder, text[: known + 1], known)

    reading, writing = timed(lambda: read_last(decoder, text[:prompt])), timed(write)
    new = len(text) - prompt
    return Speed(reading, (writing[0] / new, writing[1] / new))


def speed_rows(checkpoint: str, prompt: int, new: int, rounds: int) -> list[list[str]]:
    """Both ways in turns; a ratio is the median of the rounds' own."""
    models = {precision: run_awq.load(checkpoint, precision=precision) for precision in (EXACT, INT8)}
    decoders = {precision: model.decoder(prompt + new) for precision, model in models.items()}
    text = np.random.default_rng(0).integers(3, models[EXACT].vocabulary, prompt + new)
    found: dict[str, list[Speed]] = {precision: [] for precision in decoders}
    for _ in range(1 + rounds):
        for precision, decoder in decoders.items():
            found[precision].append(one_round(decoder, text, prompt))
    pairs = [(exact, int8) for exact, int8 in zip(found[EXACT], found[INT8], strict=True)][1:]
    rows = []
    for precision, model in models.items():
        taken = found[precision][1:]
        cells = [Path(checkpoint).name, precision, model.about.code]
        cells += [f"{prompt / median(one.prompt[0] for one in taken):.0f}", _ratio(pairs, "prompt", precision)]
        cells += [f"{1 / median(one.token[0] for one in taken):.1f}", _ratio(pairs, "token", precision)]
        rows.append(cells)
    return rows


def _ratio(pairs: list[tuple[Speed, Speed]], what: str, precision: str) -> str:
    if precision == EXACT:
        return ""
    of_clock, of_processor = (
        median(getattr(exact, what)[at] / getattr(int8, what)[at] for exact, int8 in pairs) for at in (0, 1)
    )
    return f"{of_clock:.2f}x ({of_processor:.2f}x)"


def quality_rows(checkpoint: str, windows_of, float_model: str | None) -> list[list[str]]:
    exact, int8 = (run_awq.load(checkpoint, precision=precision) for precision in (EXACT, INT8))
    windows = windows_of(exact)
    decoders = [model.decoder(windows.shape[1]) for model in (exact, int8)]
    reference = None
    if float_model:
        reference = run_awq.load(float_model, precision="bf16", flash_attention=True).decoder(windows.shape[1])
    beside = _mean([compare(decoders[1], decoders[0], one) for one in windows])
    rows = []
    for model, decoder in zip((exact, int8), decoders, strict=True):
        nll = beside.reference_nll if decoder is decoders[0] else beside.nll
        cells = [Path(checkpoint).name, model.about.precision, f"{exponential(nll):.3f}"]
        if reference is not None:
            found = _mean([compare(decoder, reference, one) for one in windows])
            cells += [f"{found.divergence:.5f}", f"{found.agreement:.2%}"]
        of_exact = [f"{beside.divergence:.6f}", f"{beside.agreement:.2%}"] if decoder is decoders[1] else ["", ""]
        rows.append(cells + of_exact)
    return rows


def _mean(found: list[Comparison]) -> Comparison:
    names = ("nll", "reference_nll", "divergence", "agreement")
    return Comparison(*(float(np.mean([getattr(one, name) for one in found])) for name in names))


def made(quality: list[list[str]], speed: list[list[str]], said: str, float_model: str | None) -> str:
    parts = [said]
    if quality:
        headings = ["checkpoint", "precision", "perplexity"]
        headings += ["divergence from the float model", "same token as it"] * bool(float_model)
        headings += ["divergence from w4abf16", "same token as it"]
        parts.append(Table("", headings, quality, texts=2).markdown())
    if speed:
        headings = ["checkpoint", "precision", "backend", "prefill tok/s", "faster", "decode tok/s", "faster"]
        parts.append(Table("", headings, speed, texts=3).markdown())
    return "\n\n".join(parts)


@click.command(help=__doc__)
@click.option("--checkpoint", multiple=True, help="A quantized model whose quality is measured; may be given again.")
@click.option("--dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A UTF-8 text.")
@click.option("--float_model", help="The float model that the checkpoints were made from.")
@click.option("--window", type=click.IntRange(2), default=1024, show_default=True)
@click.option("--n_windows", type=click.IntRange(1), default=16, show_default=True)
@click.option("--speed", multiple=True, help="A quantized model whose speed is measured; may be given again.")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True)
@click.option("--new", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--docs", is_flag=True, help="Rewrite the tables of docs/int8.md.")
def main(checkpoint, dataset, float_model, window, n_windows, speed, prompt, new, rounds, docs) -> None:
    def windows_of(model: Model) -> np.ndarray:
        return cut_windows(model.encode(dataset.read_text(encoding="utf-8")), window, n_windows, str(dataset))

    if checkpoint and dataset is None:
        raise click.UsageError("--checkpoint needs --dataset")
    fast = [row for one in speed for row in speed_rows(one, prompt, new, rounds)]
    good = [row for one in checkpoint for row in quality_rows(one, windows_of, float_model)]
    said = f"{processor()}, {native.threads()} threads, load average {os.getloadavg()[0]:.0f} at the end."
    if checkpoint:
        said += f" Quality on {n_windows} windows of {window} tokens of {dataset.name}."
    if speed:
        said += f" Speed on a prompt of {prompt} tokens and {new} after it, medians of {rounds} rounds in turns."
    text = made(good, fast, said, float_model)
    click.echo(text)
    if docs:
        PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), BEGIN, END, text), encoding="utf-8")


if __name__ == "__main__":
    main()
