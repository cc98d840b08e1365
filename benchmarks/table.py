"""The torchao table for one model: every recipe quantized, timed and evaluated, each step in a process of its own.

    python -m benchmarks.table --eval_data DIR --calib_data FILE --work DIR

writes docs/results.md and its two plots. What is finished is kept in the work directory, checkpoints included, so
that a run that was stopped goes on where it was; a step is done again when its command has changed. Let nothing else
run meanwhile.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.table_page import Figures, write_page
from benchmarks.table_rows import ROWS, Row

ROOT = Path(__file__).resolve().parent.parent
RUN = (str(ROOT / "run_awq.py"), "--task")
QUESTIONS = "truthfulqa_mc2,winogrande,arc_challenge"


class StepFailed(Exception):
    """The command and the last line it wrote to standard error."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all rows."""

    model_name: str
    group_size: int | None
    calib_data: str
    n_samples: int | None
    eval_data: str | None
    dataset: str | None
    n_windows: int | None
    limit: int | None
    threads: int | None
    work: Path

    def steps(self, row: Row) -> dict[str, list[str]]:
        """Step -> its command; what `RUN` runs writes JSON to the file it is given, speed to standard output."""
        checkpoint = str(self.work / "checkpoints" / row.name)
        steps, which = {}, ["--model_name", self.model_name, "--precision", "bf16"]
        if row.quantize is not None:
            samples = ["--calib_data", self.calib_data, *_option("--n_samples", self.n_samples)]
            calibration = [] if "none" in row.quantize else samples
            size = _option("--group_size", self.group_size)
            make = ["--model_name", self.model_name, *row.quantize, *size, *calibration, "--flash_attention"]
            steps["quantize"] = [*RUN, "quantize", *make, "--overwrite", "--output", checkpoint]
            which = ["--checkpoint", checkpoint]
        steps["speed"] = ["-m", "benchmarks.speed", *which, *_option("--threads", self.threads)]
        evaluate = [*RUN, "evaluate", *which, "--flash_attention", *_option("--num_torch_threads", self.threads)]
        data = _option("--eval_data", self.eval_data)
        text = [*_option("--dataset", self.dataset), *_option("--n_windows", self.n_windows)]
        steps["perplexity"] = [*evaluate, "--tasks", "perplexity", *data, *text]
        alone = ["--float_model", "none"] if row.quantize is not None else []  # it has a row of its own
        steps["questions"] = [*evaluate, "--tasks", QUESTIONS, *data, *_option("--limit", self.limit), *alone]
        return steps


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def run_step(row: Row, step: str, command: list[str], work: Path) -> dict:
    """The step's result, from the last run if it was the same command."""
    kept = work / "results" / f"{row.name}.{step}.json"
    if kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["command"] == command:
            return before["result"]
    click.echo(f"{row.name}: {step}", err=True)
    start = time.perf_counter()
    out = kept.with_suffix(".out")
    writes = ["--json", str(out)] if command[0] == RUN[0] else []
    environment = {**os.environ, "AWQ_CACHE": str(work / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command, *writes], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StepFailed(f"{shlex.join(command)}: {last}")
    result = json.loads(out.read_text(encoding="utf-8") if writes else done.stdout)
    out.unlink(missing_ok=True)
    whole = {"command": command, "wall_s": time.perf_counter() - start, "result": result}
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    os.replace(partial, kept)
    return result


def run_row(row: Row, settings: Settings) -> Figures:
    results = {step: run_step(row, step, command, settings.work) for step, command in settings.steps(row).items()}
    return Figures.of(row, results)


@click.command()
@click.option("--model_name", default="smollm2-135m-instruct", show_default=True)
@click.option("--group_size", type=click.IntRange(1), help="Of every quantized row.  [default: the command's own]")
@click.option("--calib_data", default="builtin", show_default=True)
@click.option("--n_samples", type=click.IntRange(1), help="Of calibration text.  [default: the command's own]")
@click.option("--eval_data", type=click.Path(exists=True, file_okay=False), help="[default: from the hub]")
@click.option("--dataset", help="Text for the perplexity.  [default: that of --eval_data, or wikitext-2 from the hub]")
@click.option("--n_windows", type=click.IntRange(1), help="[default: all]")
@click.option("--limit", type=click.IntRange(1), help="Questions a task.  [default: all]")
@click.option("--rows", "wanted", help=f"Which rows, with commas between, of {', '.join(r.name for r in ROWS)}.")
@click.option("--threads", type=click.IntRange(1), help="[default: torch's own choice]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("build/table"))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=ROOT / "docs" / "results.md")
def command(wanted: str | None, work: Path, output: Path, **given) -> None:
    names = wanted.split(",") if wanted else [row.name for row in ROWS]
    unknown = [name for name in names if name not in {row.name for row in ROWS}]
    if unknown:
        raise click.UsageError(f"--rows: there is no row {', '.join(unknown)}")
    settings = Settings(work=work.resolve(), **given)
    (settings.work / "results").mkdir(parents=True, exist_ok=True)
    figures, failed = [], []
    for row in ROWS:
        if row.name in names:
            try:
                figures.append(run_row(row, settings))
            except StepFailed as failure:
                failed.append(row.name)
                click.echo(f"{row.name} failed: {failure}", err=True)
    if figures:
        write_page(figures, settings, output)
        click.echo(f"wrote {output}", err=True)
    if failed:
        sys.exit(f"rows that failed and are not in the table: {', '.join(failed)}")


if __name__ == "__main__":
    command()
