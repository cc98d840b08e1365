"""docs/results.md: the table, how it was measured, and two plots."""

import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table_plot import plot
from benchmarks.table_rows import ROWS, Row

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
COLUMNS = (
    "", "tokens/s", "GB/s", "peak GB", "size GB", "bits", "perplexity", "KL", "top-1", "TruthfulQA MC2", "WinoGrande",
    "ARC challenge",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One row's figures; a pair is a value and its standard error (None: there is none)."""

    row: Row
    tok_s: tuple[float, float]
    peak_bytes: int
    size_bytes: int
    bits_per_weight: float
    scores: dict[tuple[str, str], tuple[float, float | None]]
    backend: str
    decoder: str
    threads: int
    text: str

    @staticmethod
    def of(row: Row, results: dict[str, dict]) -> "Figures":
        speed = results["speed"]
        scored = [*results["perplexity"]["scores"], *results["questions"]["scores"]]
        return Figures(
            row,
            (speed["tok_s"], speed["tok_s_stderr"]),
            speed["peak_rss_bytes"],
            speed["size_bytes"],
            results["quantize"]["size"]["bits_per_weight"] if "quantize" in results else 16.0,
            {(score["task"], score["metric"]): (score["value"], score["stderr"]) for score in scored},
            speed["backend"],
            speed["decoder"],
            speed["threads"],
            "{examples} windows of {window} tokens of `{dataset}`".format(**scored[0] | results["perplexity"]),
        )

    @property
    def perplexity(self) -> float:
        return self.scores["perplexity", "perplexity"][0]

    def cells(self) -> list[str]:
        def score(task: str, metric: str, digits: int) -> str:
            return _pair(*self.scores.get((task, metric), (None, None)), digits)

        return [
            self.row.name,
            _pair(*self.tok_s, 1),
            f"{self.size_bytes * self.tok_s[0] / 1e9:.2f}",
            f"{self.peak_bytes / 1e9:.2f}",
            f"{self.size_bytes / 1e9:.3f}",
            f"{self.bits_per_weight:.2f}",
            score("perplexity", "perplexity", 2),
            score("perplexity", "kl_divergence", 3),
            score("perplexity", "top1_agreement", 3),
            score("truthfulqa_mc2", "acc", 3),
            score("winogrande", "acc", 3),
            score("arc_challenge", "acc_norm", 3),
        ]


def _pair(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def write_page(figures: list[Figures], settings, output: Path) -> None:
    """settings: `benchmarks.table.Settings`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    plots = {
        "size": ("size, GB", [figure.size_bytes / 1e9 for figure in figures]),
        "speed": ("tokens/s", [figure.tok_s[0] for figure in figures]),
    }
    points = [(figure.row.name, figure.row.family, figure.perplexity) for figure in figures]
    pictures = []
    for name, (label, values) in plots.items():
        file = output.with_name(f"{output.stem}-{name}.svg")
        plot(label, values, points, file)
        pictures.append(f"![perplexity against {label}]({file.name})")
    head = ["|" + "|".join(f" {column} " for column in COLUMNS) + "|", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    rows = ["| " + " | ".join(figure.cells()) + " |" for figure in figures]
    # The fused decoder runs the float model with the same kernels, whatever its modules would run on.
    quantized = [figure for figure in figures if figure.row.quantize is not None] or figures
    backends = ", ".join(sorted({figure.backend for figure in quantized}))
    decoders = ", ".join(sorted({figure.decoder for figure in figures}))
    missing = ", ".join(row.name for row in ROWS if row not in [figure.row for figure in figures])
    parts = [
        f"# {settings.model_name}: what each recipe costs and keeps",
        f"Made by `{_command(settings)}` on {_machine()}, threads: {figures[0].threads}, kernels: {backends}, through: "
        f"{decoders}. `default` and `learned` are this project's; the "
        "others are torchao's recipes, run by this project." + f" Not run: {missing}." * bool(missing),
        "\n".join(head + rows),
        "\n\n".join(pictures),
        NOTE.format(text=figures[0].text, calibration=Path(settings.calib_data).name),
    ]
    output.write_text("\n\n".join(parts), encoding="utf-8")


def _command(settings) -> str:
    """As one would type it again: with the names of files, not the places where they happened to be."""
    words = ["python", "-m", "benchmarks.table", "--model_name", settings.model_name]
    for name in ("group_size", "calib_data", "n_samples", "eval_data", "dataset", "n_windows", "limit", "threads"):
        value = getattr(settings, name)
        if value is not None:
            words += [f"--{name}", Path(value).name if isinstance(value, str) else str(value)]
    return shlex.join(words)


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
