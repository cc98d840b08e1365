"""How fast prompts are read and tokens written as texts grow long, with a cache of 16 bits and of 8: docs/contexts.md.

\b
    python -m benchmarks.contexts --checkpoint DIR --gguf FILE --llama_python PATH/TO/ITS/python --docs
    python -m benchmarks.contexts --quality DIR --dataset FILE

--checkpoint is timed, llama.cpp and ik_llama.cpp beside it where --gguf names their file of the same model: with flash
attention, and with a cache of float16 and of q8_0. Each lives in a process of its own, and they take turns. --quality
compares the predictions over a cache of 8 bits with those over one of 16, on windows of --dataset.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

import run_awq
from benchmarks.cpu.contestant import Answer, Job, Spec
from benchmarks.cpu.race import Contestant, Entry, Race
from benchmarks.cpu.report import Engine, Way
from benchmarks.docs import DOCS, between
from benchmarks.machine import processor, wait_for_rest
from benchmarks.table import Table
from engine.scoring import compare, cut_windows, exponential
from qlinear.backends.cpu import native
from qlinear.backends.registry import KV_BITS

PAGE = DOCS / "contexts.md"
BEGIN, END = "<!-- begin: python -m benchmarks.contexts --docs -->", "<!-- end -->"
BEGIN_QUALITY = "<!-- begin: python -m benchmarks.contexts --quality --docs -->"
END_QUALITY = "<!-- end of quality -->"


@dataclass(frozen=True)
class LongRace(Race):
    """A race of texts of up to `prompt` tokens. kv_bits: of every contestant's cache."""

    kv_bits: int = 16

    def spec(self, entry: Entry) -> Spec:
        return replace(super().spec(entry), kv_bits=self.kv_bits)


@dataclass(frozen=True)
class Run:
    """Who ran, with what cache, and what each round took: answers by prompt length."""

    name: str
    kv_bits: int
    rounds: list[dict[int, Answer]]

    def prefill(self, length: int) -> list[float]:
        """Tokens a second, a round each."""
        return [length / answers[length].prompt_s for answers in self.rounds]

    def decode(self, length: int) -> list[float]:
        return [1 / answers[length].token_s for answers in self.rounds]


def runs(options: dict[str, Any]) -> list[Run]:
    """Ours first. Everybody reads a short prompt before the first round."""
    lengths, threads = options["prompts"], native.threads()
    entries = [("ours", Entry(Way(Engine.FUSED, "quantized"), Path(options["checkpoint"])))]
    programs = {Engine.LLAMA: options["llama_python"], Engine.IK: options["ik_llama"]}
    if options["gguf"]:
        theirs = (engine for engine, place in programs.items() if place)
        entries += [(engine.value, Entry(Way(engine, "GGUF"), Path(options["gguf"]))) for engine in theirs]
    started = []
    for name, entry in entries:
        for kv_bits in KV_BITS:
            race = LongRace(max(lengths), options["new"], options["rounds"], 1, threads, programs, kv_bits)
            started.append((Run(name, kv_bits, []), Contestant(entry, race), race))
    for _ in range(options["rounds"]):
        for run, contestant, race in started:
            wait_for_rest([other.number for _, other, _ in started])
            run.rounds.append({length: contestant.ask(_job(race, length)) for length in lengths})
    for _, contestant, _ in started:
        contestant.close()
    return [run for run, _, _ in started]


def _job(race: Race, length: int) -> Job:
    tokens = race.tokens(length + race.new)
    return Job(tokens[:length], tokens[length:])


def table(found: list[Run], lengths: tuple[int, ...], rate: str) -> Table:
    """Medians of tokens a second; the last length's over the first's, and ours over theirs at the last, each the median
    of the rounds' own ratios. rate: "prefill" or "decode".
    """
    headings = ["run by", "KV bits", *(f"{rate} at {length:,}" for length in lengths), "last over first"]
    others = [run for run in found if run.name != "ours"]
    headings += [f"over {run.name}, {run.kv_bits} bits" for run in others]
    rows = []
    for run in found:
        rates = {length: getattr(run, rate)(length) for length in lengths}
        cells = [run.name, str(run.kv_bits), *(f"{median(rates[length]):.1f}" for length in lengths)]
        cells.append(f"{_ratio(rates[lengths[-1]], rates[lengths[0]]):.2f}")
        for other in others:
            theirs = getattr(other, rate)(lengths[-1])
            cells.append(f"{_ratio(rates[lengths[-1]], theirs):.2f}x" if run.name == "ours" else "")
        rows.append(cells)
    return Table("", headings, rows)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def speed(options: dict[str, Any]) -> str:
    found, rounds = runs(options), options["rounds"]
    said = (
        f"{processor()}, {native.threads()} threads, {Path(options['checkpoint']).name}: tokens a second, medians of "
    )
    said += f"{rounds} rounds in turns, decoding {options['new']} tokens after each prompt; load average "
    said += f"{os.getloadavg()[0]:.0f} at the end."
    return "\n\n".join([said, *(table(found, options["prompts"], rate).markdown() for rate in ("prefill", "decode"))])


def quality(checkpoint: str, options: dict[str, Any]) -> str:
    """Predictions over 8 bits beside those over 16, each token after all of its window before it."""
    exact, rounded = (run_awq.load(checkpoint, kv_bits=kv_bits) for kv_bits in KV_BITS)
    text = exact.encode(options["dataset"].read_text(encoding="utf-8"))
    windows = cut_windows(text, options["window"], options["n_windows"], str(options["dataset"]))
    decoders = [model.decoder(windows.shape[1]) for model in (rounded, exact)]
    found = [compare(*decoders, one) for one in windows]
    nll, of_exact, divergence, agreement = (
        float(np.mean([getattr(one, name) for one in found]))
        for name in ("nll", "reference_nll", "divergence", "agreement")
    )
    headings = ["KV bits", "cache MB", "perplexity", "divergence from 16", "same token as 16"]
    rows = [
        ["16", f"{exact.kv_bytes / 1e6:.1f}", f"{exponential(of_exact):.4f}", "", ""],
        ["8", f"{rounded.kv_bytes / 1e6:.1f}", f"{exponential(nll):.4f}", f"{divergence:.6f}", f"{agreement:.2%}"],
    ]
    said = (
        f"{Path(checkpoint).name}, {len(windows)} windows of {options['window']} tokens of {options['dataset'].name}:"
    )
    return f"{said}\n\n{Table('', headings, rows).markdown()}"


@click.command(help=__doc__)
@click.option("--checkpoint", help="A quantized model to time.")
@click.option("--gguf", help="The same model for llama.cpp.")
@click.option("--llama_python", default="python", show_default=True, help="An interpreter that has llama_cpp.")
@click.option(
    "--ik_llama",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="ik_llama.cpp's sources, with a shared build in `build`; left out without them.",
)
@click.option(
    "--prompts",
    default="512,1024,2048,3000,4096",
    show_default=True,
    callback=lambda _, __, given: tuple(map(int, given.split(","))),
    help="Lengths of prompts, the shortest first.",
)
@click.option("--new", type=click.IntRange(1), default=16, show_default=True, help="Tokens to write after each.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--quality", "quality_of", help="A quantized model whose predictions are compared.")
@click.option("--dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A UTF-8 text.")
@click.option("--window", type=click.IntRange(2), default=2048, show_default=True)
@click.option("--n_windows", type=click.IntRange(1), default=8, show_default=True)
@click.option("--docs", is_flag=True, help="Rewrite what was measured in docs/contexts.md.")
def main(docs: bool, quality_of: str | None, **options: Any) -> None:
    if quality_of and options["dataset"] is None:
        raise click.UsageError("--quality needs --dataset")
    made = []
    if options["checkpoint"]:
        made.append((BEGIN, END, speed(options)))
    if quality_of:
        made.append((BEGIN_QUALITY, END_QUALITY, quality(quality_of, options)))
    for begin, end, text in made:
        click.echo(text)
        if docs:
            PAGE.write_text(between(PAGE.read_text(encoding="utf-8"), begin, end, text), encoding="utf-8")


if __name__ == "__main__":
    main()
