"""What activations, or an output head, rounded to int8 cost in quality and are worth in speed: docs/int8.md.

\b
    python -m benchmarks.int8 --checkpoint DIR --checkpoint ANOTHER --dataset FILE --docs
    python -m benchmarks.int8 --part head --checkpoint DIR --dataset FILE --speed DIR --docs

A checkpoint with --dataset scores the text's windows as it is, with int8, and, with --float_model, as the float model;
a checkpoint named by --speed reads a prompt and writes after it, as it is and with int8 in turns.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

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
END = "<!-- end -->"


@dataclass(frozen=True)
class Part:
    """What may be int8. heading: of the column that says whether it is; exact, int8: what stands there, and how a model
    is loaded so; begin: where its tables begin.
    """

    heading: str
    exact: str
    int8: str
    how: Callable[[str], dict[str, Any]]
    begin: str

    def load(self, checkpoint: str) -> dict[str, Model]:
        """Both ways, by what they are called."""
        return {way: run_awq.load(checkpoint, **self.how(way)) for way in (self.exact, self.int8)}


PARTS = {
    "activations": Part(
        "precision",
        "w4abf16",
        "w4aint8",
        lambda way: {"precision": way},
        "<!-- begin: python -m benchmarks.int8 --docs -->",
    ),
    "head": Part(
        "head bits",
        "16",
        "8",
        lambda way: {"head_bits": int(way)},
        "<!-- begin: python -m benchmarks.int8 --part head --docs -->",
    ),
}


@dataclass(frozen=True)
class Speed:
    """Seconds and processor seconds of a prompt, and of a token after it."""

    prompt: tuple[float, float]
    token: tuple[float, float]


def timed(work: Callable[[], object]) -> tuple[float, float]:
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


def speed_rows(part: Part, checkpoint: str, prompt: int, new: int, rounds: int) -> list[list[str]]:
    """Both ways in turns; a ratio is the median of the rounds' own."""
    models = part.load(checkpoint)
    decoders = {way: model.decoder(prompt + new) for way, model in models.items()}
    text = np.random.default_rng(0).integers(3, models[part.exact].vocabulary, prompt + new)
    found: dict[str, list[Speed]] = {way: [] for way in decoders}
    for _ in range(1 + rounds):
        for way, decoder in decoders.items():
            found[way].append(one_round(decoder, text, prompt))
    pairs = list(zip(found[part.exact], found[part.int8], strict=True))[1:]
    rows = []
    for way, model in models.items():
        taken, ratios = found[way][1:], ["", ""]
        if way == part.int8:
            ratios = [_ratio(pairs, "prompt"), _ratio(pairs, "token")]
        cells = [Path(checkpoint).name, way, model.about.code]
        cells += [f"{prompt / median(one.prompt[0] for one in taken):.0f}", ratios[0]]
        cells += [f"{1 / median(one.token[0] for one in taken):.1f}", ratios[1]]
        rows.append(cells)
    return rows


def _ratio(pairs: list[tuple[Speed, Speed]], what: str) -> str:
    of_clock, of_processor = (
        median(getattr(exact, what)[at] / getattr(int8, what)[at] for exact, int8 in pairs) for at in (0, 1)
    )
    return f"{of_clock:.2f}x ({of_processor:.2f}x)"


def quality_rows(part: Part, checkpoint: str, options: dict[str, Any]) -> list[list[str]]:
    """The text's windows by both ways, each beside the float model where there is one, and int8 beside the other."""
    exact, int8 = part.load(checkpoint).values()
    text = exact.encode(options["dataset"].read_text(encoding="utf-8"))
    windows = cut_windows(text, options["window"], options["n_windows"], str(options["dataset"]))
    plain, rounding = (model.decoder(windows.shape[1]) for model in (exact, int8))
    beside = _mean([compare(rounding, plain, one) for one in windows])
    rows = []
    for way, decoder, nll in ((part.exact, plain, beside.reference_nll), (part.int8, rounding, beside.nll)):
        cells = [Path(checkpoint).name, way, f"{exponential(nll):.3f}"]
        if options["float_model"]:
            reference = run_awq.load(options["float_model"], precision="bf16").decoder(windows.shape[1])
            found = _mean([compare(decoder, reference, one) for one in windows])
            cells += [f"{found.divergence:.5f}", f"{found.agreement:.2%}"]
        of_exact = [f"{beside.divergence:.6f}", f"{beside.agreement:.2%}"] if way == part.int8 else ["", ""]
        rows.append(cells + of_exact)
    return rows


def _mean(found: list[Comparison]) -> Comparison:
    names = ("nll", "reference_nll", "divergence", "agreement")
    return Comparison(*(float(np.mean([getattr(one, name) for one in found])) for name in names))


def _tables(part: Part, quality: list[list[str]], speed: list[list[str]], beside_float: bool) -> Iterator[str]:
    if quality:
        headings = ["checkpoint", part.heading, "perplexity"]
        headings += ["divergence from the float model", "same token as it"] * beside_float
        headings += [f"divergence from {part.exact}", "same token as it"]
        yield Table("", headings, quality, texts=2).markdown()
    if speed:
        headings = ["checkpoint", part.heading, "backend", "prefill tok/s", "faster", "decode tok/s", "faster"]
        yield Table("", headings, speed, texts=3).markdown()


@click.command(help=__doc__)
@click.option("--part", type=click.Choice(list(PARTS)), default="activations", show_default=True, help="What is int8.")
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
def main(docs: bool, **options: Any) -> None:
    if options["checkpoint"] and options["dataset"] is None:
        raise click.UsageError("--checkpoint needs --dataset")
    text = measured(options)
    click.echo(text)
    if docs:
        begin, page = PARTS[options["part"]].begin, PAGE.read_text(encoding="utf-8")
        PAGE.write_text(between(page, begin, END, text), encoding="utf-8")


def measured(options: dict[str, Any]) -> str:
    """options: of the command, by name."""
    part = PARTS[options["part"]]
    said = f"{processor()}, {native.threads()} threads."
    speed_of = options["prompt"], options["new"], options["rounds"]
    fast = [row for one in options["speed"] for row in speed_rows(part, one, *speed_of)]
    if fast:
        said += " Speed on a prompt of {} tokens and {} after it, medians of {} rounds".format(*speed_of)
        said += f", load average {os.getloadavg()[0]:.0f} at their end."
    good = [row for one in options["checkpoint"] for row in quality_rows(part, one, options)]
    if good:
        count, window, name = options["n_windows"], options["window"], options["dataset"].name
        said += f" Quality on {count} windows of {window} tokens of {name}."
    return "\n\n".join([said, *_tables(part, good, fast, options["float_model"] is not None)])


if __name__ == "__main__":
    main()
