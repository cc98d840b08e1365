"""docs/results.md: the table, how it was measured, and two pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import processor
from benchmarks.recipes.picture import Point, draw
from benchmarks.recipes.rows import ROWS, Row
from benchmarks.recipes.settings import Settings
from benchmarks.recipes.speed import Speed
from benchmarks.recipes.steps import Kind
from benchmarks.table import Table
from benchmarks.typed import typed

NOTE = """\
How it was measured, after torchao's table for AWQ:

- **tokens/s** is new tokens / (prefill + decode) seconds: prompt "Hello, my name is", 200 new tokens, the mean of 5
  samples after one that is not counted, with `--flash_attention`. **GB/s** is size times tokens/s.
- **peak** is the largest resident set while those samples are drawn, interpreter and libraries included. Each
  measurement is a process of its own, so nothing that calibration left behind, such as a cache, is in it.
- **size** is that of all stored tensors without the embedding, or with it where the output head is tied to it and
  reads it for every token. Scales and zero points are in it, packed as they are run. **bits** a weight are those of
  the quantized layers, scales and zero points included.
- **perplexity**, **KL** and **top-1** are of {text}: KL is the divergence from the float model's prediction in nats a
  token, top-1 the share of tokens for which both find the same one likeliest. Their standard errors are over windows.
  AWQ was calibrated on `{calibration}`; on the text that perplexity is measured on it would flatter itself.
- The last three columns are lm-eval's own tasks at its own shot counts (none for any of the three): accuracy for MC2
  and WinoGrande, accuracy normalized by length for ARC challenge, with lm-eval's standard errors.
- The errors of two rows are not independent: both answered the same questions. Small differences show in KL first.
"""
FLOAT_BITS = 16.0


@dataclass(frozen=True)
class Metric:
    """One column of scores: task and metric as `--task evaluate` names them, and digits after the point."""

    heading: str
    task: str
    metric: str
    digits: int


PERPLEXITY = Metric("perplexity", "perplexity", "perplexity", 2)
METRICS = (
    PERPLEXITY,
    Metric("KL", "perplexity", "kl_divergence", 3),
    Metric("top-1", "perplexity", "top1_agreement", 3),
    Metric("TruthfulQA MC2", "truthfulqa_mc2", "acc", 3),
    Metric("WinoGrande", "winogrande", "acc", 3),
    Metric("ARC challenge", "arc_challenge", "acc_norm", 3),
)
HEADINGS = ["", "tokens/s", "GB/s", "peak GB", "size GB", "bits", *(metric.heading for metric in METRICS)]


@dataclass(frozen=True)
class Value:
    """A figure and its standard error, None where there is none."""

    value: float
    stderr: float | None

    def cell(self, digits: int) -> str:
        return f"{self.value:.{digits}f}" + ("" if self.stderr is None else f" ± {self.stderr:.{digits}f}")


@dataclass(frozen=True)
class Figures:
    """One row's figures. text: what its perplexity was measured on, in words."""

    row: Row
    speed: Speed
    bits_per_weight: float
    scores: dict[Metric, Value]
    text: str

    @staticmethod
    def of(row: Row, results: dict[Kind, Any]) -> "Figures":
        """results: what each step wrote as JSON."""
        perplexity = results[Kind.PERPLEXITY]
        scored = [*perplexity["scores"], *results[Kind.QUESTIONS]["scores"]]
        found = {(score["task"], score["metric"]): Value(score["value"], score["stderr"]) for score in scored}
        quantized = results.get(Kind.QUANTIZE)
        windows, window, dataset = scored[0]["examples"], perplexity["window"], perplexity["dataset"]
        return Figures(
            row,
            typed(Speed, results[Kind.SPEED]),
            quantized["size"]["bits_per_weight"] if quantized else FLOAT_BITS,
            {metric: found[metric.task, metric.metric] for metric in METRICS if (metric.task, metric.metric) in found},
            f"{windows} windows of {window} tokens of `{dataset}`",
        )

    @property
    def perplexity(self) -> float:
        return self.scores[PERPLEXITY].value

    def cells(self) -> list[str]:
        speed = self.speed
        return [
            self.row.name,
            Value(speed.tok_s, speed.tok_s_stderr).cell(1),
            f"{speed.size_bytes * speed.tok_s / 1e9:.2f}",
            f"{speed.peak_rss_bytes / 1e9:.2f}",
            f"{speed.size_bytes / 1e9:.3f}",
            f"{self.bits_per_weight:.2f}",
            *(self.scores[m].cell(m.digits) if m in self.scores else "-" for m in METRICS),
        ]


def write_page(figures: list[Figures], settings: Settings, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    axes = {
        "size": ("size, GB", [figure.speed.size_bytes / 1e9 for figure in figures]),
        "speed": ("tokens/s", [figure.speed.tok_s for figure in figures]),
    }
    pictures = []
    for name, (label, values) in axes.items():
        file = output.with_name(f"{output.stem}-{name}.svg")
        draw(label, [Point(one.row, x, one.perplexity) for one, x in zip(figures, values, strict=True)], file)
        pictures.append(f"![perplexity against {label}]({file.name})")
    output.write_text(markdown(figures, settings, pictures), encoding="utf-8")


def markdown(figures: list[Figures], settings: Settings, pictures: list[str]) -> str:
    # The fused decoder runs the float model with the same kernels, whatever its modules would run on.
    quantized = [figure for figure in figures if figure.row.recipe is not None] or figures
    backends = ", ".join(sorted({figure.speed.backend for figure in quantized}))
    decoders = ", ".join(sorted({figure.speed.decoder for figure in figures}))
    missing = ", ".join(row.name for row in ROWS if row not in [figure.row for figure in figures])
    parts = [
        f"# {settings.model_name}: what each recipe costs and keeps",
        f"Made by `{settings.command()}` on {processor()}, threads: {figures[0].speed.threads}, kernels: {backends}, "
        f"through: {decoders}. `default` and `learned` are this project's; the others are torchao's recipes, run by "
        f"this project." + f" Not run: {missing}." * bool(missing),
        Table("recipes", HEADINGS, [figure.cells() for figure in figures]).markdown(),
        "\n\n".join(pictures),
        NOTE.format(text=figures[0].text, calibration=Path(settings.calib_data).name),
    ]
    return "\n\n".join(parts)
